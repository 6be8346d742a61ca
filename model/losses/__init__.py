"""What the stages minimize. Pure functions of tensors: gathering over workers and weighting are the trainer's."""
