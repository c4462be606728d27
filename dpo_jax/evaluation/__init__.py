"""How good a policy is: judges of its samples, held-out pairs, distance from the reference."""
