"Which operations torch runs, in backward passes too"
from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    "Names of the operations inside a `with` block, in `names`"
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))
