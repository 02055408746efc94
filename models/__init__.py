"""Model architectures, presets, loading of published checkpoints and text generation."""
