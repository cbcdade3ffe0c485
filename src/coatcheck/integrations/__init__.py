"""coatcheck's input path inside other engines: an adapter for each."""
