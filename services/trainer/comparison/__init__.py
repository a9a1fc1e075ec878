"""`al-trainer compare`: strategies, backbones, heads and seeds on stored embeddings, paired, and what comes of it."""
