"""Why likelihoods move as they do: the field of a loss, a policy of one table, and what one step does to each pair."""
