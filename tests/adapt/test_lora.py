"LoRA tunes low-rank matrices beside the attention of a transformer alone, and leaves a plain model"
import pytest
import torch

from fsc_fastai.adapt import LoRA
from fsc_fastai.adapt.pmf import PMF
from fsc_fastai.methods import create_fsc_model
from fsc_fastai.methods.base import class_means
from fsc_fastai.tensors import pool_vectors

pytest.importorskip('peft')
Y = torch.arange(3).repeat_interleave(3)


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return create_fsc_model('proto', 'vit_tiny_patch16_224', n_way=3, img_size=32, encoder_kwargs=dict(depth=2)).eval()


@pytest.fixture(scope='module')
def images():
    g = torch.Generator().manual_seed(1)
    x, query = (torch.randn(9, 3, 32, 32, generator=g) + Y[:, None, None, None] for _ in range(2))
    return x, query


def test_only_attention_changes_by_a_matrix_of_low_rank(model, images):
    x, query = images
    adapted = LoRA(lr=1e-2, steps=3, rank=2)(model, x, Y)
    before, after = model.encoder.state_dict(), adapted.encoder.state_dict()
    assert list(before) == list(after) and adapted.encoder.blueprint == model.encoder.blueprint
    changed = [k for k in before if not torch.equal(before[k], after[k])]
    assert changed == [f'body.blocks.{i}.attn.qkv.weight' for i in range(2)]
    assert all(torch.linalg.matrix_rank(after[k] - before[k], rtol=1e-3) == 2 for k in changed)
    assert not torch.equal(adapted(x, Y, query), LoRA(lr=0.)(model, x, Y)(x, Y, query))


def test_what_is_merged_answers_as_what_was_tuned(model, images):
    x, query = images
    method = LoRA(lr=1e-2, augment=False)
    encoder = method.trainable(model.encoder)
    trained = [name for name, p in encoder.named_parameters() if p.requires_grad]
    assert len(trained) == 4 and all('lora_' in name for name in trained)
    losses = method.tune(encoder, x, Y, [x] * 8, 1e-2)
    assert losses[-1] < losses[0]
    with torch.no_grad(): f, f_query = (pool_vectors(encoder(o)) for o in (x, query))
    expected = method.scores(class_means(f, Y), f_query)
    with torch.no_grad(): f, f_query = (pool_vectors(o) for o in map(method.finished(encoder), (x, query)))
    torch.testing.assert_close(method.scores(class_means(f, Y), f_query), expected, rtol=1e-4, atol=1e-4)


def test_it_starts_where_pmf_does_and_needs_such_layers(model, images):
    x, query = images
    first = [method.tune(method.trainable(model.encoder), x, Y, [x], 1e-3) for method in (LoRA(), PMF())]
    torch.testing.assert_close(first[0], first[1])
    conv = create_fsc_model('proto', 'conv4', n_way=3, img_size=32).eval()
    with pytest.raises(ValueError, match='called qkv.*PMF or TSA'): LoRA()(conv, x, Y)
