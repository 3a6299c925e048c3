"""An output layer sharded by DTensor, as torchtitan's, with sequence parallelism:

    torchrun --nproc-per-node 2 dtensor_head.py

Each rank has half of the sequence and half of the vocabulary. Values and gradients are compared
with those of the whole on one rank.
"""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

from aent.entropy import linear_token_statistics, token_statistics


def main() -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",))
    torch.manual_seed(0)  # the same on every rank: distribute_tensor takes each rank's part
    whole_hidden, whole_weight = torch.randn(2, 16, 32), torch.randn(501, 32)
    targets = torch.randint(0, 501, (2, 16))

    hidden = distribute_tensor(whole_hidden, mesh, [Shard(1)]).requires_grad_()
    weight = distribute_tensor(whole_weight, mesh, [Shard(0)]).requires_grad_()

    # every rank needs all tokens; what it sends back is its columns' part of their gradient
    everywhere = hidden.redistribute(placements=[Replicate()])
    local = everywhere.to_local(grad_placements=[Partial()])
    stats = linear_token_statistics(
        local, weight.to_local(), targets, tp_group=mesh.get_group("tp")
    )
    loss = -(stats.log_prob + 0.5 * stats.clamped_entropy).mean()
    loss.backward()

    h, w = whole_hidden.requires_grad_(), whole_weight.requires_grad_()
    alone = token_statistics(h @ w.t(), targets)
    (-(alone.log_prob + 0.5 * alone.clamped_entropy).mean()).backward()
    torch.testing.assert_close(stats.clamped_entropy, alone.clamped_entropy)
    torch.testing.assert_close(hidden.grad.full_tensor(), h.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weight.grad.full_tensor(), w.grad, rtol=1e-4, atol=1e-6)
    if dist.get_rank() == 0:
        print(f"clamped entropy {stats.clamped_entropy.mean():.3f} nats; gradients agree")


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()
    dist.destroy_process_group()
