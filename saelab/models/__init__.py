"""Floor 3: language models and the text they read. The only folder that imports transformers and datasets."""
