"""The accuracy half of `make bench-al`: our strategies and those of peers on the same embeddings with the same head."""
