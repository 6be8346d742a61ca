"""An optimizer step.

1. settings.py: the trainer's config as DeepSpeed's; optimizer.py: AdamW and its groups; schedule.py, loss_scale.py
2. deepspeed_engine.py: forward and backward over micro-batches, then an update
3. fragments/: which elements of weights and moments this rank owns at each ZeRO stage
"""
