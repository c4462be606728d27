"""What a run leaves to be read: the HTML report and the model card."""
