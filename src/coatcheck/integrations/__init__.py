"""coatcheck's input path inside other engines: an adapter for each, over the arena, the lane and the ledger."""
