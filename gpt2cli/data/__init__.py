"""The data room: public corpora, text sources, token shards and the order in which they are read."""
