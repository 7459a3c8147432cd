"""LoRA-drop from Python."""
