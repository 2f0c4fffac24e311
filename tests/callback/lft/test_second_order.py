"The gradient through one step of gradient descent, on functions small enough to differentiate by hand or by differences"
import torch

from fsc_fastai.callback.lft.second_order import gradient, second_order_step, with_gradient


def problem(seed=0):
    "A loss of weights and outer parameters, two losses of the weights, all in double precision"
    g = torch.Generator().manual_seed(seed)
    w1, w2, unused, gamma = (torch.randn(n, generator=g, dtype=torch.float64).requires_grad_() for n in (3, 4, 2, 5))
    m = torch.randn(5, 12, generator=g, dtype=torch.float64)

    def seen(w1, w2, gamma): return ((gamma @ m).tanh() * torch.outer(w1, w2).flatten()).exp().sum()
    def unseen(w1, w2): return [(w1.sin().sum() * w2.sum()).tanh(), w1.prod() + w2.square().sum()]
    return [w1, w2, unused], gamma, seen, unseen


def test_equals_backpropagation_through_the_unrolled_step_and_finite_differences():
    (w1, w2, unused), gamma, seen, unseen = problem()
    lrs = [0.1, 0.02, 0.3]
    grads, (by_gamma,) = second_order_step(seen(w1, w2, gamma), [w1, w2, unused], lrs, [gamma], lambda fast: unseen(*fast[:2]))

    def after_step(gamma):
        g1, g2 = torch.autograd.grad(seen(w1, w2, gamma), [w1, w2], create_graph=True)
        return sum(unseen(w1 - lrs[0]*g1, w2 - lrs[1]*g2))

    torch.testing.assert_close(by_gamma, torch.autograd.grad(after_step(gamma), gamma)[0], rtol=1e-10, atol=1e-12)
    step = 1e-6*torch.eye(5, dtype=torch.float64)
    differences = torch.stack([(after_step(gamma + d) - after_step(gamma - d)) / 2e-6 for d in step])
    torch.testing.assert_close(by_gamma, differences.detach(), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(grads[:2], list(torch.autograd.grad(seen(w1, w2, gamma), [w1, w2])))
    assert grads[2] is None and not any(g.requires_grad for g in grads[:2])


def test_loss_scale_changes_nothing_but_the_range():
    (w1, w2, _), gamma, seen, unseen = problem()
    def step(scale):
        return second_order_step(seen(w1, w2, gamma), [w1, w2], [.1, .1], [gamma], lambda fast: unseen(*fast), scale)
    torch.testing.assert_close(step(None), step(torch.tensor(2.**12, dtype=torch.float64)))


def test_what_the_step_does_not_move_has_a_gradient_of_zero():
    (w1, w2, _), gamma, seen, unseen = problem()
    outside = torch.ones(2, requires_grad=True)
    _, by_outside = second_order_step(seen(w1, w2, gamma), [w1, w2], [.1, .1], [outside], lambda fast: unseen(*fast))
    _, frozen = second_order_step(seen(w1, w2, gamma), [w1], [.1], [gamma], lambda fast: [w2.sum() + 0*fast[0].detach().sum()])
    assert torch.equal(by_outside[0], torch.zeros(2)) and torch.equal(frozen[0], torch.zeros(5, dtype=torch.float64))


def test_known_gradient_is_handed_on_scaled():
    w, other = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    loss = with_gradient(torch.tensor(5.), [w, other], [torch.arange(3.), None])
    (loss * 2).backward()
    assert loss.item() == 5 and w.grad.tolist() == [0, 2, 4] and other.grad is None


def test_gradient_is_none_where_nothing_depends():
    w, other = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    by_w, by_other = gradient(w.square().sum(), [w, other])
    assert by_w.tolist() == [2, 2, 2] and by_other is None
