"""What a person looks at when a run is done: the run card, the HTML report, and a conversation with the model."""
