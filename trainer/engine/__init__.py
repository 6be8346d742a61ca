"""An optimizer step.

1. trainable.py: what is trained; batches.py: on what; scalars.py: what comes of it
2. settings.py: the trainer's config as DeepSpeed's; optimizer.py: AdamW and its groups; schedule.py, loss_scale.py
3. deepspeed_engine.py: forward and backward over micro-batches, then an update
4. finite.py and arriving.py: what is decided on the device, and how the host learns of it without waiting
5. fragments/: which elements of weights and moments this rank owns at each ZeRO stage
6. agreement.py: what all ranks decide together between steps
"""
