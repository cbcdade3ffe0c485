"""This directory is a checkpoint in Hugging Face format; ``training/`` in coatcheck's repository makes it."""
