"""Diffusion transformers of images and clips: noise schedules, denoising errors, samplers."""
