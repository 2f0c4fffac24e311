"A method from outside: optimal matching of local features, after DeepEMD (Zhang et al. 2020)"
import torch
import torch.nn.functional as F

from fsc_fastai.methods import FewShotModel, Pairs, class_means, pair_parts, register_method


def matching(similarity, a, b, blur=.1, rounds=20):
    "The entropic transport plan `(..., i, j)` between weights `(..., i)` and `(..., j)`, by Sinkhorn's iteration"
    K, u, v = similarity / blur, torch.zeros_like(a), torch.zeros_like(b)
    for _ in range(rounds):
        u = a.log() - (K + v[..., None, :]).logsumexp(-1)
        v = b.log() - (K + u[..., :, None]).logsumexp(-2)
    return (K + u[..., :, None] + v[..., None, :]).exp()


def importance(of, other):
    "How much each position matters: its product with the mean of the other image, in sum 1"
    w = (of * other.mean(-1, keepdim=True)).sum(-2).relu() + 1e-3
    return w / w.sum(-1, keepdim=True)


@register_method('deep_emd')
class DeepEMD(FewShotModel):
    "Scores `(n_query, n_way)` are the similarity of the best matching of all positions"
    def __init__(self, encoder, n_way=5, n_classes=0, scale=12.):
        super().__init__(encoder, n_way, n_classes)
        self.scale = scale

    def process(self, f_support, support_y, f_query):
        return Pairs(class_means(f_support, support_y), f_query)

    def classify(self, f_p):
        support, query = (f.flatten(3) for f in pair_parts(f_p))
        s, q = F.normalize(support, dim=2), F.normalize(query, dim=2)
        similarity = q.transpose(2, 3) @ s
        with torch.no_grad():  # of the best matching, the gradient through the plan vanishes
            plan = matching(similarity, *torch.broadcast_tensors(importance(query, support), importance(support, query)))
        return self.scale * (similarity * plan).sum((2, 3))
