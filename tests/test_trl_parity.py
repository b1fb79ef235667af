"""Our losses beside TRL's own code in the same process; where the two differ, a test says how.

TRL's loss methods run unchanged, on a stand-in for the trainer that holds the attributes they read
and on a model that returns given log-probabilities (DPO, KTO) or random logits (CPO, ORPO).
"""

import math
import warnings
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from robustpo_kit import losses
from robustpo_kit.losses import Scores

pytest.importorskip("trl", reason="TRL is an optional peer")


PAIRS, PROMPT, LONGEST, VOCABULARY = 4, 3, 7, 11


@pytest.fixture(scope="module")
def trainers():
    """TRL's trainer classes; the import takes seconds, so only when a test asks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "trl.experimental is unstable"
        from trl.experimental.cpo.cpo_trainer import CPOTrainer
        from trl.experimental.orpo.orpo_trainer import ORPOTrainer
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.kto_trainer import KTOTrainer

    return SimpleNamespace(dpo=DPOTrainer, kto=KTOTrainer, cpo=CPOTrainer, orpo=ORPOTrainer)


def stand_in(**attributes):
    def same(x):
        return x

    return SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            device=torch.device("cpu"), gather=same, gather_for_metrics=same
        ),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        **attributes,
    )


def responses(rows, seed=0):
    """Per-token log-probs [rows, L - 1] (0 outside), completion mask [rows, L], lengths [rows]."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, LONGEST + 1, (rows,), generator=g)
    place = torch.arange(PROMPT + LONGEST)
    mask = ((place >= PROMPT) & (place < PROMPT + lengths[:, None])).long()
    tokens = -3 * torch.rand(rows, PROMPT + LONGEST - 1, generator=g, dtype=torch.float64)
    return tokens.requires_grad_() * mask[:, 1:], mask, lengths


def fake_model(tokens):
    zeros = torch.zeros_like(tokens).detach()
    outputs = SimpleNamespace(
        log_probs=tokens, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
    )
    return lambda **_: outputs


def as_pairs(x):
    """TRL stacks chosen over rejected; we keep them side by side."""
    return torch.stack(x.chunk(2, dim=0), dim=1)


def compare(ours, theirs, leaf, tolerance=1e-12):
    """Equal values and equal gradients in the token log-probabilities."""
    assert float(ours.detach()) == pytest.approx(
        float(theirs.detach()), rel=tolerance, abs=tolerance
    )
    (our_gradient,) = torch.autograd.grad(ours, leaf, retain_graph=True)
    (their_gradient,) = torch.autograd.grad(theirs, leaf, retain_graph=True)
    assert our_gradient.abs().max() > 0
    torch.testing.assert_close(our_gradient, their_gradient, rtol=tolerance, atol=tolerance)


def trl_dpo(trainers, loss_type, beta, label_smoothing=0.0, seed=0, reference=None):
    """TRL's DPO loss of a batch, our scores of the same batch, and the leaf both depend on."""
    tokens, mask, lengths = responses(2 * PAIRS, seed)
    if reference is None:
        g = torch.Generator().manual_seed(seed + 1)
        reference = -10 * torch.rand(2 * PAIRS, generator=g, dtype=torch.float64)
    trainer = stand_in(
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=label_smoothing,
        use_weighting=False,
    )
    chosen, rejected = reference.chunk(2)
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    theirs = trainers.dpo._compute_loss(trainer, fake_model(tokens), inputs, False)
    scores = Scores(as_pairs(tokens.sum(dim=1)), as_pairs(reference), as_pairs(lengths))
    return theirs, scores, tokens


def twice_sppo(scores, beta):
    """TRL leaves out the half."""
    return 2 * losses.BASES["sppo"].loss(scores, beta=beta)


def nca_of_a_pair(scores, beta):
    """All of the reward's mass on the chosen one."""
    rewards = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand_as(scores.logps)
    scores = scores._replace(rewards=rewards)
    return losses.BASES["nca"].loss(scores, beta=beta, temperature=1e-3)


SAME = [
    ("sigmoid", {"beta": 0.1}, losses.dpo, {"beta": 0.1}),
    ("ipo", {"beta": 0.1}, losses.ipo, {"tau": 0.1, "reduction": "mean"}),
    ("robust", {"beta": 0.3, "label_smoothing": 0.2}, losses.rdpo, {"beta": 0.3, "epsilon": 0.2}),
    ("hinge", {"beta": 0.1}, losses.BASES["hinge"].loss, {"beta": 0.1}),
    ("aot", {"beta": 0.1, "label_smoothing": 0.0}, losses.BASES["aot"].loss, {"beta": 0.1}),
    ("sppo_hard", {"beta": 0.1}, twice_sppo, {"beta": 0.1}),
    ("nca_pair", {"beta": 0.1}, nca_of_a_pair, {"beta": 0.1}),
]


@pytest.mark.parametrize(
    ("loss_type", "theirs", "loss", "ours"), SAME, ids=[row[0] for row in SAME]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_dpo_family_is_trls(trainers, loss_type, theirs, loss, ours, seed):
    value, scores, tokens = trl_dpo(trainers, loss_type, seed=seed, **theirs)
    compare(loss(scores, **ours).mean(), value, tokens)


def test_exo_is_trls_up_to_its_single_precision_epsilon(trainers):
    """TRL makes epsilon a float32 tensor; ours keeps the Python float."""
    value, scores, tokens = trl_dpo(trainers, "exo_pair", beta=0.5, label_smoothing=1e-3)
    compare(losses.exo(scores, beta=0.5, epsilon=1e-3).mean(), value, tokens, tolerance=1e-6)
    rounded = float(torch.tensor(1e-3))  # the number TRL used
    ours = float(losses.exo(scores, beta=0.5, epsilon=rounded).mean().detach())
    assert ours == pytest.approx(float(value.detach()), rel=1e-6)
    value, scores, tokens = trl_dpo(
        trainers, "exo_pair", beta=0.5, label_smoothing=0.5
    )  # exact in both
    difference = float(losses.exo(scores, beta=0.5, epsilon=0.5).mean().detach() - value.detach())
    assert abs(difference) < 1e-6  # log(0.5) in float32


def test_ipo_of_the_paper_is_not_trls(trainers):
    """TRL's ipo divides each log-ratio by its tokens; the paper's, our default, sums them."""
    value, scores, _ = trl_dpo(trainers, "ipo", beta=0.1)
    summed = float(losses.ipo(scores, tau=0.1).mean().detach())
    assert summed != pytest.approx(float(value.detach()), rel=1e-2)
    one_token = scores._replace(lengths=torch.ones_like(scores.lengths))
    assert summed == pytest.approx(
        float(losses.ipo(one_token, tau=0.1, reduction="mean").mean().detach())
    )


def test_sft_of_trl_weighs_tokens_and_ours_samples(trainers):
    value, scores, tokens = trl_dpo(trainers, "sft", beta=0.1)
    s, n = scores.logps[:, 0], scores.lengths[:, 0]
    assert float((losses.sft(scores, reduction="sum") / n.sum()).sum().detach()) == pytest.approx(
        float(value.detach())
    )
    weighted = (losses.sft(scores) * n / n.sum()).sum()
    assert float(weighted.detach()) == pytest.approx(float(value.detach()), rel=1e-12)
    assert float(losses.sft(scores).mean().detach()) == pytest.approx(
        float(-(s / n).mean().detach()), rel=1e-12
    )


def test_cdpo_is_two_trl_dpo_losses(trainers):
    """TRL 1.16 has no cDPO any more; label smoothing of its sigmoid loss over both is ours."""
    plain, scores, tokens = trl_dpo(trainers, "sigmoid", beta=0.3)
    swapped_value, _, swapped_tokens = trl_dpo(
        trainers, "sigmoid", beta=-0.3
    )  # sigma(-x): the flipped label
    assert torch.equal(tokens, swapped_tokens)
    expected = 0.8 * plain + 0.2 * swapped_value
    assert float(losses.cdpo(scores, beta=0.3, epsilon=0.2).mean().detach()) == pytest.approx(
        float(expected.detach()), rel=1e-12
    )


@pytest.mark.parametrize("kl_shift", [-2.0, 2.0])
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_kto_is_trls(trainers, weight, kl_shift):
    """TRL takes single labelled responses: its mean over 2B of them is our mean over B pairs.

    The KL may clamp at 0.
    """
    tokens, mask, lengths = responses(2 * PAIRS)
    g = torch.Generator().manual_seed(5)
    reference = -10 * torch.rand(2 * PAIRS, generator=g, dtype=torch.float64)
    kl_logps = -10 * torch.rand(2 * PAIRS, generator=g, dtype=torch.float64)
    kl_ref_logps = kl_logps - kl_shift + torch.rand(2 * PAIRS, generator=g, dtype=torch.float64)
    trainer = stand_in(
        calculate_KL=True,
        loss_type="kto",
        beta=0.1,
        desirable_weight=1.0,
        undesirable_weight=weight,
        _compute_kl_logps=lambda model, batch: kl_logps,
    )
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "label": torch.arange(2 * PAIRS) < PAIRS,
        "ref_logps": reference,
        "ref_KL_logps": kl_ref_logps,
    }
    theirs = trainers.kto._compute_loss(trainer, fake_model(tokens), inputs, False)
    scores = Scores(
        as_pairs(tokens.sum(dim=1)),
        as_pairs(reference),
        as_pairs(lengths),
        kl_logps=kl_logps.view(2, PAIRS).mean(0),  # the same mean KL
        kl_ref_logps=kl_ref_logps.view(2, PAIRS).mean(0),
    )
    compare(losses.kto(scores, beta=0.1, weight_rejected=weight).mean(), theirs, tokens)


def logit_batch(seed=0):
    """Random logits [2B, L, V] as a leaf, TRL's batch, our scores, the NLL with the prompt."""
    g = torch.Generator().manual_seed(seed)
    length = PROMPT + LONGEST
    logits = torch.randn(
        2 * PAIRS, length, VOCABULARY, generator=g, dtype=torch.float64
    ).requires_grad_()
    ids = torch.randint(0, VOCABULARY, (2 * PAIRS, length), generator=g)
    ends = PROMPT + torch.randint(1, LONGEST + 1, (2 * PAIRS,), generator=g)
    ends[0] = ends[-1] = length  # both halves are padded to one length by TRL
    place = torch.arange(length)
    attention = (place < ends[:, None]).long()
    labels = torch.where((place >= PROMPT) & (attention == 1), ids, -100)
    batch = {}
    for name, rows in (("chosen", slice(0, PAIRS)), ("rejected", slice(PAIRS, None))):
        batch |= {
            f"{name}_input_ids": ids[rows],
            f"{name}_attention_mask": attention[rows],
            f"{name}_labels": labels[rows],
        }
    token_logps = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    in_response = labels[:, 1:] != -100
    logps = (token_logps * in_response).sum(-1)
    all_tokens = (token_logps * attention[:, 1:])[:PAIRS]
    full_nll = -all_tokens.sum() / attention[:PAIRS, 1:].sum()
    scores = Scores(as_pairs(logps), None, as_pairs(in_response.sum(-1)))
    return logits, batch, scores, full_nll


def trl_reference_free(trainer_class, logits, batch, **attributes):
    """TRL's whole loss: its own concatenation, log-probabilities, NLL and preference term."""
    trainer = stand_in(
        is_encoder_decoder=False, pad_token_id=0, padding_value=0, label_smoothing=0.0, **attributes
    )
    for name in ("concatenated_inputs", "get_batch_logps"):
        setattr(trainer, name, getattr(trainer_class, name))
    for name in ("concatenated_forward", "cpo_loss", "odds_ratio_loss"):
        if hasattr(trainer_class, name):
            setattr(trainer, name, getattr(trainer_class, name).__get__(trainer))
    return trainer_class.get_batch_loss_metrics(
        trainer, lambda *_, **__: SimpleNamespace(logits=logits), batch
    )[0]


@pytest.mark.parametrize(("beta", "gamma0"), [(2.0, 0.8), (10.0, 5.0)])
def test_simpo_is_trls(trainers, beta, gamma0):
    """TRL's simpo_gamma is gamma0 itself, not the ratio."""
    logits, batch, scores, _ = logit_batch()
    theirs = trl_reference_free(
        trainers.cpo,
        logits,
        batch,
        alpha=0.0,
        loss_type="simpo",
        beta=beta,
        simpo_gamma=gamma0,
        cpo_alpha=0.0,
    )
    ours = losses.simpo(scores, beta=beta, gamma0=gamma0).mean()
    compare(ours, theirs, logits, tolerance=1e-10)


def test_cpo_preference_term_is_trls(trainers):
    logits, batch, scores, _ = logit_batch()
    theirs = trl_reference_free(
        trainers.cpo, logits, batch, alpha=0.0, loss_type="sigmoid", beta=0.1, cpo_alpha=0.0
    )
    compare(losses.cpo(scores, beta=0.1, lam=0.0).mean(), theirs, logits, tolerance=1e-10)


def test_cpo_nll_of_trl_is_one_mean_over_the_batchs_tokens(trainers):
    """TRL adds sum s_w / sum n_w; ours -s_w (paper) or -s_w / n_w a sample, all weighing alike."""
    logits, batch, scores, _ = logit_batch()
    theirs = trl_reference_free(
        trainers.cpo, logits, batch, alpha=0.0, loss_type="sigmoid", beta=0.1, cpo_alpha=1.0
    )
    n = scores.lengths[:, 0]
    preference = losses.cpo(scores, beta=0.1, lam=0.0).mean()
    compare(
        preference + losses.sft(scores, reduction="sum").sum() / n.sum(),
        theirs,
        logits,
        tolerance=1e-10,
    )
    ours = losses.cpo(scores, beta=0.1, lam=1.0, reduction="mean").mean()
    assert len(set(n.tolist())) > 1
    assert float(ours.detach()) != pytest.approx(float(theirs.detach()), rel=1e-6)
    single = {name: value[:1] for name, value in batch.items()}
    one = trl_reference_free(
        trainers.cpo,
        logits[[0, PAIRS]],
        single,
        alpha=0.0,
        loss_type="sigmoid",
        beta=0.1,
        cpo_alpha=1.0,
    )
    first = Scores(scores.logps[:1], None, scores.lengths[:1])
    ours = losses.cpo(first, beta=0.1, lam=1.0, reduction="mean").mean()
    compare(ours, one, logits, tolerance=1e-10)  # one sample: the same


def test_orpo_of_trl_trains_on_the_prompt_too_and_in_single_precision(trainers):
    """TRL's NLL has the prompt in it, its odds are rounded to float32; ours is the paper's."""
    logits, batch, scores, full_nll = logit_batch()
    theirs = trl_reference_free(trainers.orpo, logits, batch, beta=0.5)
    ratio = losses.orpo(scores, lam=0.5) - losses.sft(scores)  # the odds-ratio term alone
    compare(full_nll + ratio.mean(), theirs, logits, tolerance=1e-6)
    assert float(losses.orpo(scores, lam=0.5).mean().detach()) != pytest.approx(
        float(theirs.detach()), rel=1e-3
    )


def test_dpo_at_the_start_is_ln_2_in_both(trainers):
    tokens, _, _ = responses(2 * PAIRS)
    own = tokens.detach().sum(dim=1)
    theirs, scores, _ = trl_dpo(trainers, "sigmoid", beta=0.1, reference=own)
    assert float(theirs.detach()) == pytest.approx(math.log(2), rel=1e-12)
    ours = losses.dpo(scores, beta=0.1).mean()
    assert float(ours.detach()) == pytest.approx(math.log(2), rel=1e-12)
