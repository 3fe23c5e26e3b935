"""From text to packed rows: sources, tokenizer, packing, the manifest of prepared data."""
