"""Networks that tell real images from made ones, a file each. How they are trained is the trainer's."""
