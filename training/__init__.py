"""How the default model is made: scenes, tokenizer, configuration, training and evaluation."""
