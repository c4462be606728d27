"""Images and clips: preference scorers, quality measures, diffusion transformers, noise schedules and samplers."""
