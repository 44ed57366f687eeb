"""Pictures of a task's prompt, made without any library: a font, and encoders for PNG, JPEG and H.264 in MP4."""
