"""What the entry scripts share. Layers and their order are described in README.md."""
