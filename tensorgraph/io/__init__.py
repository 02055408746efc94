"""Files: safetensors (single, sharded), GGUF, training checkpoints."""
