"""LoRA-drop from Python: `lora_drop.peft`, for models that train in PyTorch with PEFT."""
