"""What a stage will need before it runs: operations, memory, storage, time, money. All of it is predicted.

1. blank_stages.py builds a stage without data, fake_device.py a GPU without one
2. traced_engine.py runs the stage's own step: forward_trace.py and backward.py note each operation (operation.py),
   trace.py sums them up; step_trace.py continues them to the whole depth; attention_pairs.py, host_tensors.py say what
   masks and host values are
3. devices.py and roofline.py: what that takes on a device; update.py: the optimizer and communication; step_cost.py
4. memory.py, storage.py, failures.py, measured.py: the rest of a plan; fitting.py: what fits; plan.py puts it together
5. model_flops.py: operations of a run that is under way, for MFU
"""
