"""Parts that networks share: attention, random masks that follow from seeds, vision transformers."""
