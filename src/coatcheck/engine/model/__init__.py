"""The model's side: load and shard, plan a batch, prefill, decode, sample."""
