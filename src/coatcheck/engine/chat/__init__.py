"""What a worker does with the body of a chat completion: schema, prompt, sampling. The media are the intake's."""
