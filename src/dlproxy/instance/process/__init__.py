"""Instances that run in processes of their own: tensors through shared memory, orders through a socket.

`instance.py` is the server's side and `worker.py` the other one; both use `messages.py` and `slots.py`.
"""
