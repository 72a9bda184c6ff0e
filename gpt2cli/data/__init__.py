"""Data: public corpora, text sources, token shards, records, and the order of training batches."""
