"""Mistakes to put into the formulas, each with the tests that must notice: `make mutants` tries them all.

A line for every rule and formula: the file, what stands there (once), the mistake, and the test files (or one test of a file).
"""
from __future__ import annotations

from typing import NamedTuple

__all__ = ['Mutation', 'MUTATIONS']


class Mutation(NamedTuple):
    "One mistake"
    what: str # The formula
    file: str # Where it is
    old: str # What stands there, once
    new: str # The mistake
    tests: str # Tests that must fail, separated by spaces


RULES, START, HEADS = 'fsc_fastai/explain/rules.py', 'fsc_fastai/explain/weights.py', 'fsc_fastai/explain/closed_form.py'
BASE, CAN, GNN = 'fsc_fastai/methods/base.py', 'fsc_fastai/methods/cross_attention.py', 'fsc_fastai/methods/graph.py'
FT, LFT = 'fsc_fastai/encode/transformation.py', 'fsc_fastai/callback/lft/learned.py'
SECOND, TRANSDUCTION = 'fsc_fastai/callback/lft/second_order.py', 'fsc_fastai/adapt/transduction.py'
BY_HAND, HEAD_TESTS = 'tests/explain/test_rules.py', 'tests/explain/test_closed_form.py'
LFT_TESTS = 'tests/callback/lft/test_lft_gradient.py'
LRP_CAN, LRP_CAN_TESTS = 'fsc_fastai/callback/guided/lrp_can.py', 'tests/callback/guided/test_lrp_can.py'
MODE, OPS, ENGINE_TESTS = 'fsc_fastai/explain/tracing.py', 'fsc_fastai/explain/ops.py', 'tests/explain/test_engine.py'
HEATMAPS, HEATMAP_TESTS = 'fsc_fastai/explain/heatmaps.py', 'tests/explain/test_heatmaps.py'
GRAPH_TESTS = 'tests/methods/test_graph.py tests/methods/test_golden.py'
HEAD, HEAD_OF_METHOD_TESTS = 'fsc_fastai/methods/head.py', 'tests/adapt/test_head.py'
RN_HEAD, GNN_HEAD = 'fsc_fastai/adapt/relation_head.py', 'fsc_fastai/adapt/graph_head.py'
RN_HEAD_TESTS, GNN_HEAD_TESTS = 'tests/adapt/test_relation_head.py', 'tests/adapt/test_graph_head.py'
CALIBRATE, CALIBRATE_TESTS = 'fsc_fastai/deploy/calibrate.py', 'tests/deploy/test_calibrate.py'
HELD_OUT, HELD_OUT_TESTS = 'fsc_fastai/deploy/held_out.py', 'tests/deploy/test_held_out.py'
STRANGE, CONFORMAL = 'fsc_fastai/deploy/strangeness.py', 'fsc_fastai/deploy/conformal.py'
SMALL_MAPS, SMALL_MAPS_TESTS = 'fsc_fastai/kernels/small_conv.py', 'tests/kernels/test_small_conv.py'
NORM, NORM_TESTS = 'fsc_fastai/kernels/batch_norm.py', 'tests/kernels/test_batch_norm.py'
STREAMS, AFA_TESTS = 'fsc_fastai/callback/parts/two_streams.py', 'tests/callback/test_afa.py'
LDP, LDP_TESTS = 'fsc_fastai/callback/ldp_net.py', 'tests/callback/test_ldp_net.py'
LOSSES, LOSS_TESTS = 'fsc_fastai/methods/losses.py', 'tests/methods/test_losses.py'
PROPAGATION, PROPAGATION_TESTS = 'fsc_fastai/adapt/label_propagation.py', 'tests/adapt/test_label_propagation.py'
STYLES, STYLE_TESTS = 'fsc_fastai/callback/parts/styles.py', 'tests/callback/parts/test_styles.py'
STYLEADV, STYLEADV_TESTS = 'fsc_fastai/callback/styleadv.py', 'tests/callback/test_styleadv.py'
WAVE, WAVE_TESTS = 'fsc_fastai/callback/wave_san.py', 'tests/callback/test_wave_san.py'
REPORT, TABLE_TESTS = 'fsc_fastai/reproduce/report.py', 'tests/reproduce/test_table.py'

MUTATIONS = (
    # Relevance rules, equations (4) and (5) of Sun et al. 2020, and those of Montavon, Lapuschkin and others
    Mutation('ε stabilises, it does not unsettle', RULES, 'z.sign(), alpha=eps)', 'z.sign(), alpha=-eps)', BY_HAND),
    Mutation('ε has the sign of z', RULES, 'torch.add(z, z.sign(), alpha=eps)', 'z + eps', BY_HAND),
    Mutation('nothing contributes, nothing is shared', RULES, 'masked_fill(z == 0, 0)', 'masked_fill(z != z, 0)', BY_HAND),
    Mutation('ε-rule shares by its own ε', RULES, 'layer.share(R, layer.z, self.eps, layer.bias)',
             'layer.share(R, layer.z, 0., layer.bias)', BY_HAND),
    Mutation('β = α − 1', RULES, 'self.alpha - 1 if self.beta is None', 'self.alpha + 1 if self.beta is None', BY_HAND),
    Mutation('α-β: negative shares are taken off', RULES, 'return self.alpha * c - beta *', 'return self.alpha * c + beta *',
             BY_HAND),
    Mutation('α-β: x⁻w⁻ is a positive contribution', RULES, 'c = _by_sign(layer, x, R, pos, neg, bias',
             'c = _by_sign(layer, x, R, pos, pos, bias', BY_HAND),
    Mutation('α-β: x⁻w⁺ is a negative contribution', RULES, 'beta * _by_sign(layer, x, R, neg, pos, bias',
             'beta * _by_sign(layer, x, R, neg, neg, bias', BY_HAND),
    Mutation('z⁺ is α = 1, β = 0', RULES, 'super().__init__(1., 0.)', 'super().__init__(1., 1.)', BY_HAND),
    Mutation('γ favours positive weights', RULES, 'w + self.gamma * w.clamp(min=0), w', 'w - self.gamma * w.clamp(min=0), w',
             BY_HAND),
    Mutation('γ favours negative weights of negative inputs', RULES, 'w + self.gamma * w.clamp(max=0), self',
             'w - self.gamma * w.clamp(max=0), self', BY_HAND),
    Mutation('z^B: low meets w⁺', RULES, 'layer(x, w) - layer(low, pos) - layer(high',
             'layer(x, w) + layer(low, pos) - layer(high', BY_HAND),
    Mutation('z^B: high meets w⁻', RULES, '- high * layer.T(s, neg)', '+ high * layer.T(s, neg)', BY_HAND),
    Mutation('flat: equal parts', RULES, 'torch.ones_like(layer.weight))', 'layer.weight.abs())', BY_HAND),
    Mutation('w²', RULES, 'layer.weight**2', 'layer.weight.abs()', BY_HAND),
    Mutation('a folded bias takes part', RULES, 'if bias is not None: z = z + bias', 'if bias is not None: z = z - bias',
             BY_HAND),
    Mutation('inputs of both signs at once', RULES, 'torch.where(x > 0, c_pos, c_neg)', 'torch.where(x > 0, c_neg, c_pos)',
             BY_HAND),

    # Where an explanation starts and what training makes of it, equations (2) and (7)
    Mutation('relevance of a score: odds', START, '(p + eps) / (1 - p + eps)', '(p + eps) / (1 + p + eps)',
             'tests/explain/test_weights.py'),
    Mutation('relevance of a score: against chance', START, '((n_way - 1) *', '(n_way *', 'tests/explain/test_weights.py'),
    Mutation('weights are 1 + R/max|R|', START, 'return 1 + R /', 'return 1 - R /', 'tests/explain/test_weights.py'),
    Mutation('of the absolute relevance', START, 'R.abs().amax(', 'R.amax(', 'tests/explain/test_weights.py'),

    # Relevance passes written out
    Mutation('cosine terms', HEADS, 'terms = unit(total) * unit(support', 'terms = total * unit(support', HEAD_TESTS),
    Mutation('a prototype that is nearer', HEADS, 'return others @ squares - squares', 'return others @ squares + squares',
             HEAD_TESTS),
    Mutation('GNN on a GPU: absolute differences of all pairs', GNN, '(x[:, :, None] - x[:, None]).abs()',
             '(x[:, :, None] - x[:, None])', GRAPH_TESTS),
    Mutation('GNN on a GPU: variance of the batch', GNN, '0, correction=0)', '0, correction=1)', GRAPH_TESTS),
    Mutation('GNN: both operators', HEADS, 'return x * (itself + single', 'return x * (itself - single', HEAD_TESTS),
    Mutation('RN: α-rule takes positive weights', HEADS, 'positive = single(conv.weight).clamp(min=0)',
             'positive = single(conv.weight)', HEAD_TESTS),
    Mutation('RN: pairs of both signs', HEADS, 'return reduce(add, [relevance(', 'return reduce(lambda p, q: p - q, [relevance(',
             HEAD_TESTS),
    Mutation('integrated gradients take midpoints', 'fsc_fastai/explain/baselines.py', '(k + .5) / steps', '(k + 1.) / steps',
             'tests/explain/test_baselines.py'),
    Mutation('gradient × input', 'fsc_fastai/explain/baselines.py', 'return x * flow', 'return flow',
             'tests/explain/test_baselines.py'),

    # The engine, and what is drawn of relevance
    Mutation('two factors share half each', OPS, 'scaled(t, t, .5)', 'scaled(t, t, 1.)',
             f'{ENGINE_TESTS}::test_gates_are_constants_and_equal_factors_share'),
    Mutation('attention: a learned value is bias', 'fsc_fastai/explain/layer_ops.py', 'weights @ v + bias', 'weights @ v - bias',
             ENGINE_TESTS),
    Mutation('a quotient passes relevance on to what stands below', OPS, 'if not mode.carries(args[0]): return _through(',
             'if False: return _through(', 'tests/explain/test_ops.py'),
    Mutation('a fast path asks for hooks', 'fsc_fastai/as_built.py', 'bool(m._forward_hooks or', 'bool(',
             'tests/test_as_built.py'),
    Mutation('what is written to a view its base sees', 'fsc_fastai/explain/memory.py', '_geometry(t) != _geometry(base) or', '',
             'tests/explain/test_memory.py'),
    Mutation('a gate is a constant', OPS, 'return mode.as_gate(_pass(mode, func, args, kwargs))',
             'return _pass(mode, func, args, kwargs)', f'{ENGINE_TESTS}::test_gates_are_constants_and_equal_factors_share'),
    Mutation('signed batch norm turns weights', MODE, "else scale.sign()", 'else scale.sign().abs()',
             f'{ENGINE_TESTS}::test_signed_batch_norm_equals_turned_weights'),
    Mutation('folded batch norm scales the bias', MODE, 'shift + scale * bias.reshape', 'shift + bias.reshape',
             f'{ENGINE_TESTS}::test_zennit_with_merged_batch_norm'),
    Mutation('heatmaps: 0 stays in the middle', HEATMAPS, 'np.percentile(np.abs(heat), percentile',
             'np.percentile(heat, percentile',
             HEATMAP_TESTS),
    Mutation('heatmaps: channels are summed', HEATMAPS, '.float().sum(-3)', '.float().amax(-3)', HEATMAP_TESTS),

    # Explanation-guided training, equations (8) and (9)
    Mutation('merged loss', 'fsc_fastai/callback/guided/lrp_guided.py', 'lam * guided + xi * plain if xi', 'lam * guided - xi * plain if xi',
             'tests/callback/guided/test_lrp_guided.py'),
    Mutation('λ weighs the guided loss', 'fsc_fastai/callback/guided/lrp_guided.py', 'lam * guided + xi * plain if xi',
             'xi * guided + lam * plain if xi', 'tests/callback/guided/test_lrp_guided.py'),
    Mutation('λ of one shot', 'fsc_fastai/methods/base.py', '(1., .5), (1., 1.)', '(1., 1.), (1., .5)',
             'tests/callback/guided/test_lrp_guided.py'),

    Mutation('LRP-CAN: ξ = 0', 'fsc_fastai/methods/cross_attention.py', '(0., 1.), (0., 1.)', '(1., 1.), (1., 1.)',
             'tests/callback/guided/test_lrp_guided.py::test_published_weights'),
    Mutation('control: an order for each pair', 'fsc_fastai/callback/guided/lrp_controls.py', 'torch.rand(w.shape[:3]).argsort(2)',
             'torch.rand(w.shape[2]).argsort(0).expand(w.shape[:3])', 'tests/callback/guided/test_lrp_controls.py'),
    Mutation('control: every weight of an episode anywhere', 'fsc_fastai/callback/guided/lrp_controls.py',
             'w.flatten()[torch.randperm(w.numel()).to(w.device)].reshape(w.shape)', 'w[torch.randperm(len(w)).to(w.device)]',
             'tests/callback/guided/test_lrp_controls.py'),
    Mutation('interval of a mean over domains', REPORT, 'math.sqrt((ci**2).sum()) / len(ci)', 'ci.mean()', TABLE_TESTS),
    Mutation('LRP-CAN as released: weighted queries', LRP_CAN, 'w * unit(f_p.query, 2)', 'unit(f_p.query, 2)', LRP_CAN_TESTS),
    Mutation('LRP-CAN as released: ε has the sign of z', LRP_CAN, '(z + self.eps * z.sign())', '(z + self.eps)', LRP_CAN_TESTS),
    Mutation('LRP-CAN as released: learned through its weights', LRP_CAN,
             'relevance_weights(of_terms, detach=False)', 'relevance_weights(of_terms)', LRP_CAN_TESTS),

    # Feature-wise transformation, Tseng et al. 2020
    Mutation('FT: scale is around 1', FT, '(1 + scale).view(shape)', 'scale.view(shape)', 'tests/encode/test_transformation.py'),
    Mutation('FT: softplus has β = 100', FT, 'F.softplus(p, beta=100)', 'F.softplus(p)', 'tests/encode/test_transformation.py'),
    Mutation('FT: noise is a draw a channel', FT, 'torch.randn_like(p) *', 'torch.randn(1) *',
             'tests/encode/test_transformation.py'),
    Mutation('LFT: fast weights go downhill', SECOND, 'torch.sub(w, d, alpha=lr)', 'torch.add(w, d, alpha=lr)',
             'tests/callback/lft/test_second_order.py'),
    Mutation('LFT: −lr·∂L′/∂w', SECOND, 'else -lr * u for u', 'else lr * u for u', 'tests/callback/lft/test_second_order.py'),
    Mutation('LFT: weight of the auxiliary loss', LFT, '0.9**(20 *', '0.9**(10 *',
             f'{LFT_TESTS}::test_auxiliary_weight_decays_as_published'),
    Mutation('LFT: pseudo-unseen episodes are seen in eval mode', LFT, 'with evaluating(model): scores',
             'with ExitStack(): scores', f'{LFT_TESTS}::test_gradient_of_gamma_and_beta_equals_the_unrolled_step'),
    Mutation('LFT: mean over the domains', LFT, 'as_subclass(Tensor) / len(self.domains)', 'as_subclass(Tensor)',
             f'{LFT_TESTS}::test_all_domains_are_the_mean_of_each'),
    # Later training methods: StyleAdv, SVasP, ATA, wave-SAN
    Mutation('FLoR: w of the instance norm', 'fsc_fastai/encode/flor.py', 'lerp(self.BN(x), self.IN(x), w)',
             'lerp(self.IN(x), self.BN(x), w)', 'tests/encode/test_flor.py'),
    Mutation('BSR: squares', 'fsc_fastai/callback/bsr.py', 'features.square().sum()', 'features.abs().sum()',
             'tests/callback/test_bsr.py'),
    Mutation('AFA: the gradient is reversed', STREAMS, '-weight * g', 'weight * g', AFA_TESTS),
    Mutation('AFA: Gram matrices for each image', STREAMS, 'f.shape[2]**2', 'f.shape[2]', AFA_TESTS),
    Mutation('AFA: softmax twice', STREAMS, 'weight)).softmax(1)', 'weight))', AFA_TESTS),
    Mutation('AFA: the strength at the start is 0', STREAMS, 'math.exp(-share)) - 1', 'math.exp(-share))', AFA_TESTS),
    Mutation('AFA: γ, β ascend', 'fsc_fastai/callback/afa.py', 'p.register_hook(torch.neg)', 'p.register_hook(torch.abs)', AFA_TESTS),
    Mutation('LDP-Net: logarithm of the crops', LDP, 'local.log_softmax(-1)', 'local.softmax(-1)', LDP_TESTS),
    Mutation('LDP-Net: teacher and pupil', LDP, 'p[teacher] * log_l[:, pupil]', 'p[pupil] * log_l[:, teacher]', LDP_TESTS),
    Mutation('LDP-Net: the copy follows slowly', LDP, 'old.lerp_(new, 1 - momentum)', 'old.lerp_(new, momentum)', LDP_TESTS),
    Mutation('MAML: the weights as they were', 'fsc_fastai/callback/maml.py', 'for p, w in own.items(): p.data = w\n\n    def after_backward',
             'pass\n\n    def after_backward', 'tests/callback/test_maml.py'),
    Mutation('margin: off the true class', LOSSES, '- self.margin * self.scale * true', '+ self.margin * self.scale * true', LOSS_TESTS),
    Mutation('triplet: own less others', LOSSES, 'own - distances + self.margin', 'distances - own + self.margin', LOSS_TESTS),
    Mutation('propagation: row sums on both sides', PROPAGATION, 'root[..., :, None] * W * root', 'W * root', PROPAGATION_TESTS),
    Mutation('style: divisor H·W − 1', STYLES, 'positions.var(2)', 'positions.var(2, correction=0)', STYLE_TESTS),
    Mutation('restyle: its own style first', STYLES, '(single(x) - m) / s * std', '(single(x) - m) * std', STYLE_TESTS),
    Mutation('KL of the clean to the attacked', STYLES, 'log_p.exp() * (log_p - log_q)', 'log_q.exp() * (log_q - log_p)', STYLE_TESTS),
    Mutation('half-way KL: mean of the scores', STYLES, 'r = (p + q) / 2', 'r = p + q', STYLE_TESTS),
    Mutation('Haar: orthonormal', STYLES, 'return 2 * F.avg_pool2d', 'return F.avg_pool2d', STYLE_TESTS),
    Mutation('wave-SAN: the change spread over its square', STYLES, 'scale_factor=2) / 2', 'scale_factor=2)', STYLE_TESTS),
    Mutation('wave-SAN: the other style is a constant', STYLES, 'like.detach()', 'like', STYLE_TESTS),
    Mutation('StyleAdv: ascends', STYLEADV, '+ epsilon * grad.sign()', '- epsilon * grad.sign()', STYLEADV_TESTS),
    Mutation('StyleAdv: blocks before are attacked already', STYLEADV, '{**_restyling(styles), block: with_leaves}',
             '{block: with_leaves}', STYLEADV_TESTS),
    Mutation('StyleAdv: the attack in eval mode', STYLEADV, 'with evaluating(self.raw_model): styles', 'if True: styles',
             STYLEADV_TESTS),
    Mutation('SVasP: less the gradient of the crops', 'fsc_fastai/callback/svasp.py', 'normalised(grad) - self.decay',
             'normalised(grad) + self.decay', STYLEADV_TESTS),
    Mutation('ATA: ascends', 'fsc_fastai/callback/ata.py', 'x + lr * torch.autograd', 'x - lr * torch.autograd',
             'tests/callback/test_ata.py'),
    Mutation('ATA: the attack in eval mode', 'fsc_fastai/callback/ata.py', 'with evaluating(self.raw_model): x =', 'if True: x =',
             'tests/callback/test_ata.py'),
    Mutation('wave-SAN: weights of plain and swapped', WAVE, '(1 - self.weight) * (self.loss_grad', 'self.weight * (self.loss_grad',
             WAVE_TESTS),
    Mutation('wave-SAN: norms see one episode after the other', WAVE, 'with apart(model.encoder), changed', 'with changed',
             WAVE_TESTS),
    Mutation('accumulation is a mean', 'fsc_fastai/callback/accumulate.py', 'self.learn.loss_grad /= self.n_acc', 'pass',
             'tests/learner/test_core.py::test_accumulation_equals_the_mean_gradient_of_its_episodes'),

    # Methods
    Mutation('class means divide by the shots', 'fsc_fastai/methods/labels.py', '(total / member.sum(0)[:, None])', '(total / member.sum())',
             'tests/methods/test_base.py'),
    Mutation('a pair holds the prototype first', 'fsc_fastai/methods/pairs.py',
             'torch.cat(torch.broadcast_tensors(*pair_parts(self)), 2)',
             'torch.cat(torch.broadcast_tensors(*pair_parts(self)[::-1]), 2)', 'tests/methods/test_relation.py'),
    Mutation('cosine normalises both sides', 'fsc_fastai/tensors.py', "'nmc,nmc->nm', unit(a), unit(b)",
             "'nmc,nmc->nm', unit(a), b", 'tests/methods/test_base.py tests/methods/test_proto.py'),
    Mutation('ProtoNet: nearer is likelier', 'fsc_fastai/methods/proto.py', 'return -(single(query)', 'return (single(query)',
             'tests/methods/test_proto.py'),
    Mutation('MatchingNet: attention is summed over a class', 'fsc_fastai/methods/matching.py', 'f_p.labels.log()).logsumexp(1)',
             'f_p.labels.log()).amax(1)', 'tests/methods/test_matching.py'),
    Mutation('MatchingNet: scaled cosine', 'fsc_fastai/methods/matching.py', 'F.log_softmax(self.scale * cosine',
             'F.log_softmax(cosine',
             'tests/methods/test_matching.py'),
    Mutation('MatchingNet: context adds to the query', 'fsc_fastai/methods/matching.py', 'hidden = hidden + query',
             'hidden = hidden + 0',
             'tests/methods/test_matching.py'),
    Mutation('MatchingNet: both directions add to the support', 'fsc_fastai/methods/matching.py', '.unflatten(1, (2, -1)).sum(1)',
             '.unflatten(1, (2, -1))[:, 0]', 'tests/methods/test_matching.py'),
    Mutation('CAN: attention is 1 + softmax', CAN, 'return 1 + F.softmax(', 'return F.softmax(',
             'tests/methods/test_cross_attention.py'),
    Mutation('CAN: temperature', CAN, 'fused / self.temperature', 'fused * self.temperature',
             'tests/methods/test_cross_attention.py'),
    Mutation('CAN: mean correlation', CAN, "'ac,bcj->abj', a.mean(2), b", "'ac,bcj->abj', a.amax(2), b",
             'tests/methods/test_cross_attention.py'),
    Mutation('CAN: who attends to whom', CAN, 'self.attention(s, q).unflatten(2, size), self',
             'self.attention(s, s).unflatten(2, size), self', 'tests/methods/test_cross_attention.py tests/methods/test_golden.py'),
    Mutation('CAN: mean of the correlation', CAN, "b, kernel) / n)", "b, kernel))", 'tests/methods/test_cross_attention.py'),
    Mutation('CAN: scaled cosine', CAN, 'self.scale * cosine(', 'cosine(', 'tests/methods/test_golden.py'),
    Mutation('CAN: cosine at every position', CAN, 'prototype, unit(f_p.query, 2))', 'prototype, single(f_p.query))',
             'tests/methods/test_golden.py'),
    Mutation('CAN: global loss of the true way', 'fsc_fastai/methods/losses.py', 'global_scores[rows, way]',
             'global_scores[rows, 0 * way]', 'tests/methods/test_losses.py'),
    Mutation('CAN: half the episodic loss', 'fsc_fastai/methods/losses.py', '+ self.episodic * super()', '+ super()',
             'tests/methods/test_losses.py'),
    Mutation('GNN: no self-loops', GNN, ".masked_fill(itself, float('-inf'))", '',
             'tests/methods/test_graph.py tests/methods/test_golden.py'),
    Mutation('GNN: edges of absolute differences', GNN, '(x[:, i] - x[:, j]).abs()', '(x[:, i] - x[:, j])',
             'tests/methods/test_graph.py tests/methods/test_golden.py'),
    Mutation('GNN: a pair counts twice in the statistics', GNN, '2 / (n_graphs * n**2)', '1 / (n_graphs * n**2)',
             'tests/methods/test_graph.py tests/methods/test_golden.py'),
    Mutation('GNN: mean of the edges by shares', GNN, 'mean = (share * x).sum(0)', 'mean = x.mean(0)', GRAPH_TESTS),
    Mutation('GNN: variance of the edges by shares', GNN, '(share * (x - mean).square()).sum(0)',
             '(x - mean).square().mean(0)', GRAPH_TESTS),
    Mutation('GNN: n pairs of a node with itself', GNN, 'share[-1] = 1 / n', 'share[-1] = 1 / n**2', GRAPH_TESTS),
    Mutation('GNN: the identity, then the adjacency', GNN, 'torch.cat([x, (adjacency @ x).to(x.dtype)], 2)',
             'torch.cat([(adjacency @ x).to(x.dtype), x], 2)', GRAPH_TESTS),
    Mutation('GNN: outputs are appended', GNN, 'torch.cat([x, F.leaky_relu(new)], 2)', 'torch.cat([F.leaky_relu(new), x], 2)',
             GRAPH_TESTS),
    Mutation('GNN: queries have no label', GNN, 'F.pad(labels, (0, 0, 0, n_per_graph))',
             'F.pad(labels, (0, 0, 0, n_per_graph), value=1.)', 'tests/methods/test_graph.py tests/methods/test_golden.py'),
    Mutation('RN: loss on sigmoid scores', 'fsc_fastai/methods/losses.py', 'F.mse_loss(scores.sigmoid()',
             'F.mse_loss(scores.tanh()', 'tests/methods/test_losses.py tests/methods/test_golden.py tests/methods/test_relation.py'),

    # The deployed classifier
    Mutation('deployed RN: a sample meets its prototype without itself', RN_HEAD, '/ (shots - without)', '/ shots',
             HEAD_OF_METHOD_TESTS),
    Mutation('deployed: variance as batch norm takes it', HEAD, 'correction=0)[::-1]', 'correction=1)[::-1]',
             HEAD_OF_METHOD_TESTS),
    Mutation('deployed GNN: the query has no label', GNN_HEAD, 'labels[:, -1] = 0', 'labels[:, -1] = 1', HEAD_OF_METHOD_TESTS),
    Mutation('calibration: scores are divided', HELD_OUT, 'scores / math.exp(log_t)', 'scores * math.exp(log_t)',
             CALIBRATE_TESTS),
    Mutation('calibration: the share that passes', CALIBRATE, 'np.quantile(p_known, 1 - keep)', 'np.quantile(p_known, keep)',
             CALIBRATE_TESTS),
    Mutation('calibration: others are refused below it', CALIBRATE, '(p_other < threshold)', '(p_other >= threshold)',
             f'{CALIBRATE_TESTS}::test_what_a_threshold_does_by_hand'),
    Mutation('one of each class in a fold', HELD_OUT, 'shots.clamp(max=FOLDS)', 'shots.clamp(max=1)', HELD_OUT_TESTS),
    Mutation('strangeness: a mean of fewer is further off', STRANGE, '((1 + 1 / shots) / (1 + 1 / rest.sum(0)))',
             '((1 + 1 / rest.sum(0)) / (1 + 1 / shots))', HELD_OUT_TESTS),
    Mutation('strangeness: Student', STRANGE, 'stats.t.ppf(keep', 'stats.t.ppf(1 - keep', HELD_OUT_TESTS),
    Mutation('sets: who fits no better', CONFORMAL, '<= query', '>= query', HELD_OUT_TESTS),
    Mutation('sets: the proven coverage', CONFORMAL, '(k - 1) / (n + k)', '(k - 1) / (n - k)', HELD_OUT_TESTS),
    Mutation('images are normalised', 'fsc_fastai/deploy/preprocess.py', '.sub_(mean)', '.add_(mean)',
             'tests/deploy/test_set_support.py'),
    Mutation('16 bits become 8', 'fsc_fastai/data/pixels.py', '65535 if sixteen else', '255 if sixteen else',
             'tests/data/test_images.py'),

    # Numbers that tables show
    Mutation('an episode: no support image among the queries', 'fsc_fastai/data/sampler.py', 'query=np.concatenate([d[shot:]',
             'query=np.concatenate([d[:query]', 'tests/data/test_sampler.py'),
    Mutation('confusion: rows are the true classes', 'fsc_fastai/learner/confusion.py',
             '(classes[y.cpu()], classes[scores.argmax(1).cpu()])',
             '(classes[scores.argmax(1).cpu()], classes[y.cpu()])',
             'tests/learner/test_evaluate.py::test_confusion_counts_who_was_taken_for_whom'),
    Mutation('interval over seeds: Student', REPORT, 'stats.t.ppf(0.975', 'stats.t.ppf(0.95',
             f'{TABLE_TESTS}::test_intervals_over_seeds_are_students'),
    Mutation('interval over seeds: n − 1', REPORT, 'ddof=1', 'ddof=0', f'{TABLE_TESTS}::test_intervals_over_seeds_are_students'),
    Mutation('what a step adds is a difference', REPORT, '(both.accuracy_b - both.accuracy)', '(both.accuracy_b + both.accuracy)',
             f'{TABLE_TESTS}::test_effects_pair_the_seeds'),
    Mutation('Figure 3: change against the baseline', 'fsc_fastai/reproduce/figure.py', 'guided[statistic] / plain[statistic]',
             'plain[statistic] / guided[statistic]', f'{TABLE_TESTS}::test_statistics_change_against_the_baseline'),
    Mutation('the best epoch is kept', 'fsc_fastai/reproduce/training.py', 'self.accuracies[-1] > max(',
             'self.accuracies[-1] < max(',
             'tests/reproduce/test_training.py::test_the_weights_of_the_best_epoch_are_kept'),
    Mutation('transduction: published candidates', TRANSDUCTION, '(35, 70)', '(35, 75)', 'tests/adapt/test_transduction.py'),
    Mutation('interval: √n', 'fsc_fastai/learner/metrics.py', '/ math.sqrt(len(values))', '/ len(values)', 'tests/learner/test_metrics.py'),
    Mutation('interval: 1.96', 'fsc_fastai/learner/metrics.py', '1.96 * float(values', '1.645 * float(values', 'tests/learner/test_metrics.py'),
    Mutation('interval: n − 1', 'fsc_fastai/learner/metrics.py', 'values.std(ddof=1)', 'values.std(ddof=0)',
             'tests/learner/test_metrics.py'),
    Mutation('episodes of changing size go one by one', 'fsc_fastai/learner/episode_scores.py', 'if sampler.varies: at_once = 1',
             'if False: pass', 'tests/learner/test_evaluate.py::test_episodes_of_changing_size'),
    Mutation('difference is b − a', 'fsc_fastai/learner/evaluate.py', 'np.subtract(b[name], a[name])', 'np.subtract(a[name], b[name])',
             'tests/learner/test_evaluate.py::test_compare_pairs_the_episodes'),
    Mutation('transduction: the surest queries join', TRANSDUCTION, 'descending=True', 'descending=False',
             'tests/adapt/test_transduction.py'),
    Mutation('transduction: rounds accumulate', TRANSDUCTION, 'torch.cat([f_support, f_query[chosen]])',
             'torch.cat([f_support[:-1], f_query[chosen], f_support[-1:]])', 'tests/adapt/test_transduction.py'),
    Mutation('transduction: fewer queries, fewer candidates', TRANSDUCTION, 'min(1., n_query / _PUBLISHED_QUERIES)', '1.',
             'tests/adapt/test_transduction.py'),
    Mutation('Figure 3: quantile over positions', 'fsc_fastai/learner/channel_statistics.py', 'quantile(0.95, dim=2)', 'mean(dim=2)',
             'tests/learner/test_channel_statistics.py'),
    Mutation('Figure 3: 95 % − 45 %', 'fsc_fastai/learner/channel_statistics.py', 'high - low', 'low - high', 'tests/learner/test_channel_statistics.py'),
    Mutation('Figure 3: 45 %', 'fsc_fastai/learner/channel_statistics.py', '[0.45, 0.95]', '[0.5, 0.95]', 'tests/learner/test_channel_statistics.py'),
    Mutation('Figure 3: variance over the channels', 'fsc_fastai/learner/channel_statistics.py', 'correction=0', 'correction=1',
             'tests/learner/test_channel_statistics.py'),
    # Heads
    Mutation('RN: the mean of the members, as members', RN_HEAD, 'self.support.chunk(2, 1)[0]', 'self.support.chunk(2, 1)[1]',
             RN_HEAD_TESTS),
    Mutation('RN: queries as queries', RN_HEAD, 'f_query.chunk(2, 1)[1]', 'f_query.chunk(2, 1)[0]', RN_HEAD_TESTS),
    Mutation('RN: not where a subclass scores in its own way', RN_HEAD, "'process', 'classify', 'forward_head'", "'process',",
             RN_HEAD_TESTS),
    Mutation('GNN: edges by absolute differences', GNN_HEAD, '(x[:, :-1] - x[:, -1:]).abs()', '(x[:, :-1] - x[:, -1:])',
             GNN_HEAD_TESTS),
    Mutation('GNN: edges among the support by absolute differences', GNN_HEAD, '(x[:, i] - x[:, j]).abs()', '(x[:, i] - x[:, j])',
             GNN_HEAD_TESTS),
    Mutation('GNN: no self-loops', GNN_HEAD, "float('-inf')", '0.', GNN_HEAD_TESTS),
    Mutation('GNN: an edge runs both ways', GNN_HEAD, 'weight[:, i, j] = weight[:, j, i] =', 'weight[:, i, j] =', GNN_HEAD_TESTS),
    Mutation('GNN: the first edges alone are the same in each graph', GNN_HEAD, 'k == 0 and', 'k >= 0 and', GNN_HEAD_TESTS),
    Mutation('GNN: the scores of the query', GNN_HEAD, 'x[:, -1], (weight', 'x[:, 0], (weight', GNN_HEAD_TESTS),
    Mutation('GNN: not where a subclass scores in its own way', GNN_HEAD, "GNNNet, 'classify', 'classify_with_trace', gnn",
             'GNNNet, gnn', GNN_HEAD_TESTS),
    Mutation('GNN: graphs of a subclass hold one query', HEAD, 'if self.model.queries_apart else 1', '', GNN_HEAD_TESTS),
    # Second derivatives of batch norms
    Mutation('norm: C takes off what A and B share', NORM, 'A, B, value=-1).addcmul_', 'A, B).addcmul_', NORM_TESTS),
    Mutation('norm: C is a covariance', NORM, 'value=-1 / m**2', 'value=-1 / m', NORM_TESTS),
    Mutation('norm: ∂g projects the mean out', NORM, 'c, x_in_g, mean, value=-1)', 'c, x_in_g, mean)', NORM_TESTS),
    Mutation('norm: ∂g has a part for ∂x', NORM, '.add_(wrPu)', '', NORM_TESTS),
    Mutation('norm: ∂x by g through ∂w and ∂x', NORM, 'torch.addcmul(a, wr, A, value=-1) * r', 'a * r', NORM_TESTS),
    Mutation('norm: ∂x through the variance', NORM, 'torch.addcmul(of_P * B, wr * r, C) * r', 'of_P * B * r', NORM_TESTS),
    Mutation('norm: ∂x projects the mean out', NORM, 'of_P, g_sum, value=-1 / m)', 'of_P, g_sum, value=1 / m)', NORM_TESTS),
    Mutation('norm: ∂x has a part for u', NORM, '.addcmul_(wrPu, (B * r).view(shape), value=-1)', '', NORM_TESTS),
    Mutation('norm: ∂w is a sum', NORM, 'C * (m * r), None', 'C * r, None', NORM_TESTS),
    Mutation('norm: running statistics are another formula', NORM, 'quick = training and', 'quick =', NORM_TESTS),
    Mutation('norm: nothing stays', NORM, 'for m in norms: del m.forward', 'pass', NORM_TESTS),
    Mutation('LFT: quick second derivatives', LFT, 'step.enter_context(quick_second_derivative(self.raw_model))', 'pass',
             'tests/callback/lft/test_lft.py'),

    # What nobody has written is an error, not a guess
    Mutation('guess: a layer that the composite leaves out', MODE, 'if found is None:', 'if False:',
             'tests/explain/test_composite.py'),
    Mutation('guess: a layer of an unknown operation', MODE, 'if self.owner is not None:  #', 'if False:  #', ENGINE_TESTS),
    Mutation('guess: a method without process', BASE, "raise NotImplementedError(f'{type(self).__name__} needs `process",
             "return (f'{type(self).__name__} needs `process", 'tests/methods/test_base.py'),
    Mutation('guess: a method without classify', BASE, "raise NotImplementedError(f'{type(self).__name__} needs `classify",
             "return (f'{type(self).__name__} needs `classify", 'tests/methods/test_base.py'),
)
