"""Networks on a grid: neighbours, slopes, the law in other factors, and the evidence."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm

from benchmarks.images import page
from countvae import ConvMultinomialVAE
from countvae.decoder import ConvDecoder, Decoder
from countvae.encoder import ConvEncoder
from countvae.evidence import solve_noise
from countvae.inference import (
    balanced,
    drawn_factors,
    factor_covariance,
    factors_by_weight,
    in_expectation,
    log_ratios,
    log_ratios_by_weight,
    posterior_at,
    proportion_interval,
    proposals,
    refine,
    shared_draws,
)
from countvae.layers import ACTIVATIONS, Grid, convolution, transposed_convolution

GRIDS = [
    *(Grid((6, 5)), Grid((7,)), Grid((4, 4), 2), Grid((1, 9)), Grid((3,), 3)),
    *(Grid((2, 2)), Grid((1, 1), 5), Grid((1,), 4)),
]
EXACT = {"rtol": 1e-9, "atol": 1e-9}
K = 2


def drawn(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def bent(grid, depth=3, activation="silu", k=K, size=0.5):
    """Make a decoder whose network is not zero."""
    decoder = ConvDecoder(
        drawn(grid.d, k),
        drawn(grid.d, seed=1),
        torch.tensor(0.3).double(),
        grid=grid,
        depth=depth,
        width=4,
        activation=activation,
        generator=torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        for layer in (decoder.first, decoder.hidden[-1]):
            layer.weight.normal_(0, size, generator=torch.Generator().manual_seed(1))
            layer.bias.normal_(0, size, generator=torch.Generator().manual_seed(2))
    return decoder.requires_grad_(False)


def encoder(grid, depth=3, shared_D=False):
    """Make an encoder whose last layer is not zero."""
    made = ConvEncoder(
        drawn(grid.d, K),
        drawn(K, seed=1),
        drawn(K, seed=2),
        drawn(grid.d, seed=3),
        grid=grid,
        depth=depth,
        width=4,
        activation="silu",
        pseudocount=1.0,
        shared_D=shared_D,
        generator=torch.Generator().manual_seed(0),
    ).requires_grad_(False)
    if depth > 1:
        made.last.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    return made


def counts(grid, n=5):
    return torch.from_numpy(np.random.default_rng(0).poisson(4, (n, grid.d)).astype(float))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_features_lie_on_the_grid_as_images_are_flattened(grid):
    flat = drawn(4, grid.d)
    images = grid.images(flat)
    of_numpy = flat.numpy().reshape(4, *grid.shape, grid.channels)
    np.testing.assert_array_equal(images.numpy(), np.moveaxis(of_numpy, -1, 1))
    torch.testing.assert_close(grid.flat(images), flat, rtol=0, atol=0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("depth", [2, 3, 6])
def test_slopes_are_those_of_autograd(grid, depth, activation):
    decoder, z = bent(grid, depth, activation), drawn(5, K, seed=4)
    expected = torch.func.vmap(torch.func.jacrev(lambda one: decoder.logits(one[None])[0]))(z)
    torch.testing.assert_close(decoder.jacobian(z), expected, **EXACT)
    assert decoder.bend(z).std() > 0.001 or grid.positions < 5


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_decoder_in_other_factors_is_the_same_law(grid):
    decoder, z = bent(grid), drawn(5, K, seed=4)
    before = decoder.logits(z)
    A, shift = drawn(K, K, seed=5) + 2 * torch.eye(K), drawn(K, seed=6)
    decoder.rescale(A, shift)
    moved = decoder.logits(torch.linalg.solve(A, (z - shift).T).T)
    ratio = before - before.mean(1, keepdim=True)
    torch.testing.assert_close(moved - moved.mean(1, keepdim=True), ratio, **EXACT)


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_an_encoder_in_other_factors_or_from_another_centre_answers_the_same(grid, depth):
    made, x = encoder(grid, depth), counts(grid)
    before, _ = made(x)
    A, shift = drawn(K, K, seed=5) + 2 * torch.eye(K), drawn(K, seed=6)
    made.rescale(A, shift)
    torch.testing.assert_close(made(x)[0] @ A.T + shift, before, **EXACT)
    made.recentre(drawn(grid.d, seed=7))
    torch.testing.assert_close(made(x)[0] @ A.T + shift, before, **EXACT)


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (16,), (1, 16), (2, 2), (9, 9)], ids=str)
def test_layers_keep_the_size_of_what_goes_through(shape):
    """Along axes of few positions too: what is beyond the edge is zero."""
    generator, like = torch.Generator().manual_seed(0), torch.zeros(1).double()
    small = Grid(shape, 64).halved(1)
    for layer, given in (
        (convolution(64, 256, shape, 1, generator, like), Grid(shape, 64)),
        (transposed_convolution(64, 256, shape, generator, like), small),
    ):
        values = torch.randn(400, *(given.channels, *given.shape), generator=generator).double()
        size = layer(values).square().mean().item()
        assert 2 * 0.4 < size < 2 * 1.1


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_network_starts_as_the_linear_one_and_every_layer_learns(grid):
    V, mu, sigma2 = drawn(grid.d, K), drawn(grid.d, seed=1), torch.tensor(0.3).double()
    settings = {"depth": 3, "width": 4, "activation": "silu"}
    generator = torch.Generator().manual_seed(0)
    decoder = ConvDecoder(V, mu, sigma2, grid=grid, **settings, generator=generator)
    z = drawn(5, K, seed=4)
    torch.testing.assert_close(decoder.logits(z), Decoder(V, mu, sigma2).logits(z), **EXACT)
    trained = bent(grid).requires_grad_()
    trained.logits(z).square().sum().backward()
    for name, parameter in trained.named_parameters():
        if parameter.numel() and not (name.startswith("hidden.3.bias") and grid.channels == 1):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_what_moves_by_a_pixel_is_seen_a_pixel_further():
    grid = Grid((9, 9))
    made = encoder(grid, depth=2)
    made.seen_from.zero_()
    x = torch.zeros(1, 9, 9).double()
    x[:, 3:5, 4:6] = torch.tensor([[5.0, 2.0], [1.0, 7.0]])
    moved = x.roll((1, 1), (1, 2))
    seen, further = (
        made._seen(image.flatten(1), None, None).reshape(4, 9, 9) for image in (x, moved)
    )
    inner = slice(2, -2)
    again = seen.roll((1, 1), (1, 2))
    torch.testing.assert_close(further[:, inner, inner], again[:, inner, inner], **EXACT)
    assert (seen[:, inner, inner] - again[:, inner, inner]).abs().max() > 0.1


def test_a_factor_moves_a_spot_of_the_image_only():
    """Two doublings on, what a position of the small image holds reaches nine pixels at most."""
    decoder = bent(Grid((16, 16)), depth=3)
    small = decoder.small.images(torch.zeros(2, decoder.small.d).double())
    small[1, :, 1, 2] = 3.0
    images = small
    for i, layer in enumerate(decoder.hidden):
        images = decoder._doubled(i, images) if i % 2 else layer(images)
    touched = (images[1] - images[0]).abs().sum(0) > 1e-12
    rows, columns = torch.nonzero(touched, as_tuple=True)
    assert rows.min() >= 4 * 1 - 3
    assert rows.max() <= 4 * 1 + 6
    assert columns.min() >= 4 * 2 - 3
    assert columns.max() <= 4 * 2 + 6
    assert 16 < touched.sum() <= 100


def test_deep_decoders_compute_nothing_beyond_their_grid():
    decoder = bent(Grid((8, 8)), depth=9)
    sizes = []
    for layer in decoder.hidden:
        layer.register_forward_hook(lambda _layer, _given, out: sizes.append(out.shape[-1]))
    assert decoder.logits(drawn(2, K)).shape == (2, 64)
    assert max(sizes) <= 16


def log_evidence_by_quadrature(x, decoder):
    """Log p(x) of three features and one factor: sums over z and both log-ratios of the noise."""
    t = np.linspace(-6, 6, 81)
    sd = np.sqrt(decoder.sigma2.item())
    basis = np.array([[1, 1], [-1, 1], [0, -2]]) / np.sqrt([2, 6])
    e = np.stack(np.meshgrid(t, t, indexing="ij"), -1).reshape(-1, 2)
    prior = norm.logpdf(e).sum(1)
    found = []
    for z in t:
        logits = decoder.logits(torch.tensor([[z]])).numpy() + sd * e @ basis.T
        log_p = logits - logsumexp(logits, axis=1, keepdims=True)
        found.append(norm.logpdf(z) + logsumexp(log_p @ x.numpy() + prior))
    return logsumexp(found) + 3 * np.log(t[1] - t[0])


def bound_by_quadrature(x, decoder):
    """Integrate exp B(x | z) N(z; 0, 1), B being the bound at given factors."""
    t = torch.linspace(-7, 7, 2001).double()
    x = x.expand(len(t), -1)
    noise = solve_noise(decoder.logits(t[:, None]), torch.zeros_like(x), x, decoder.sigma2)
    log_p = noise.bound + noise.overcount - t.square() / 2
    return (log_p.logsumexp(0) + (t[1] - t[0]).log()).item() - np.log(2 * np.pi) / 2


@pytest.mark.parametrize("size", [0.3, 1.0])
def test_bound_and_evidence_of_a_network_are_those_of_quadrature(size):
    decoder = bent(Grid((3,)), depth=2, k=1, size=size)
    x = torch.tensor([[9, 3, 0], [1, 0, 0], [2, 30, 8], [0, 2, 60]]).double()
    z = torch.zeros(len(x), 1).double()
    answer = refine(decoder, x, posterior_at(decoder, x, z, torch.ones_like(z)), 20)
    normal = torch.from_numpy(np.random.default_rng(0).standard_normal((1000, *z.shape)))
    weights = torch.stack([each.log_weight for each in proposals(decoder, x, answer, normal)])
    evidence = (weights.logsumexp(0) - np.log(len(weights))).numpy()
    exact = np.array([bound_by_quadrature(row, decoder) for row in x])
    np.testing.assert_allclose(evidence, exact, atol=0.05)
    truth = np.array([log_evidence_by_quadrature(row, decoder) for row in x])
    averaged = in_expectation(decoder, x, answer)
    bound = (averaged.bound + averaged.noise.overcount).numpy()
    assert (bound < exact + 1e-3).all()  # an average over draws
    assert (evidence < truth).all()
    assert (truth - bound).max() < 0.7


@pytest.mark.parametrize("draws", [16, 17])
def test_weights_of_few_draws_are_right_on_average(draws):
    """Of an odd number of draws one more is normal than of the prior."""
    decoder = bent(Grid((3,)), depth=2, k=1)
    x = torch.tensor([[9, 3, 0], [2, 30, 8]]).double()
    z = torch.zeros(len(x), 1).double()
    answer = refine(decoder, x, posterior_at(decoder, x, z, torch.ones_like(z)), 20)
    rng, found = np.random.default_rng(0), []
    for _ in range(600):
        normal = torch.from_numpy(rng.standard_normal((draws, *z.shape)))
        weights = [each.log_weight for each in proposals(decoder, x, answer, normal)]
        found.append(torch.stack(weights).logsumexp(0).numpy() - np.log(draws))
    ratio = np.exp(np.array(found) - [bound_by_quadrature(row, decoder) for row in x])
    error = ratio.std(0) / np.sqrt(len(ratio))
    assert (np.abs(ratio.mean(0) - 1) < 4 * error + 1e-3).all()
    assert error.max() < 0.008


@pytest.mark.parametrize("k", [1, 8])
def test_averages_over_balanced_draws_are_exact_in_a_factor_and_its_square(k):
    """Else the bound of every sample is off by as much, of which no average over samples tells."""
    draws = balanced(shared_draws(torch.zeros(1).double(), k, 64))
    torch.testing.assert_close(draws.square().mean(0), torch.ones(1, k).double())
    torch.testing.assert_close(draws.mean(0), torch.zeros(1, k).double())
    assert (draws.pow(4).mean() - 3).abs() < 0.6


def test_of_few_counts_weighed_draws_find_what_a_normal_law_behind_a_network_misses():
    decoder, n = bent(Grid((4, 4)), size=1.6), 400
    rng = np.random.RandomState(0)
    z = torch.from_numpy(rng.standard_normal((n, K)))
    noise = torch.from_numpy(rng.standard_normal((n, 16)))
    logits = decoder.logits(z) + decoder.sigma2.sqrt() * noise
    true = logits.softmax(1)
    x = torch.from_numpy(np.array([rng.multinomial(10, p) for p in true.numpy()])).double()
    answer = refine(decoder, x, posterior_at(decoder, x, 0 * z, torch.ones_like(z)), 20)
    S = factor_covariance(decoder.jacobian(answer.z), answer.noise.w)

    def held(factors):
        low, high = proportion_interval(decoder, x, answer, factors, 0.9, rng)
        return ((low <= true) & (true <= high)).double().mean().item()

    def judged(proportions, clr, clr_sd):
        away = (clr - logits + logits.mean(1, keepdim=True)) / clr_sd
        lost = (true * (true / proportions).log()).sum(1).mean().item()
        return (away.abs() < 1.645).double().mean().item(), lost

    assert held(factors_by_weight(decoder, x, answer, 200, rng)) > 0.86
    assert held(drawn_factors(answer, S, 200, rng)) < 0.82
    weighed = log_ratios_by_weight(decoder, x, answer)
    (inside, lost), (normal, more) = (
        judged(*law) for law in (weighed, log_ratios(decoder, x, answer, S))
    )
    assert inside == pytest.approx(0.9, abs=0.03)
    assert normal < 0.83
    assert lost < 0.7 * more
    one = posterior_at(decoder, x[:1], answer.z[:1], answer.D[:1])
    for alone, together in zip(log_ratios_by_weight(decoder, x[:1], one), weighed, strict=True):
        torch.testing.assert_close(alone[0], together[0], atol=1e-3, rtol=0)


def test_the_bound_of_a_linear_decoder_needs_no_draws():
    decoder, x = (
        Decoder(drawn(6, K), drawn(6, seed=1), torch.tensor(0.3).double()),
        counts(Grid((6,))),
    )
    answer = posterior_at(decoder, x, drawn(5, K), torch.ones(5, K).double())
    assert in_expectation(decoder, x, answer) is answer


def test_the_straight_map_says_what_it_lacks_of_the_variance():
    decoder = bent(Grid((6, 5)))
    V, mu, beyond = decoder.straight()
    z = torch.randn(20_000, K, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    logits = torch.cat([decoder.logits(part) for part in z.split(500)])
    left = (logits - mu - z @ V.T).square().sum(1).mean().item()
    assert beyond == pytest.approx(left, rel=0.1)
    assert logits.var(0).sum().item() == pytest.approx(V.square().sum().item() + beyond, rel=0.1)


def test_the_page_of_images_is_that_of_the_results():
    written = page.ROOT / "docs" / "images.md"
    assert written.read_text(encoding="utf-8") == page.page()


@pytest.mark.parametrize("decoder", ["linear", "network"])
@pytest.mark.parametrize("shape", [(8, 8), (64, 1)])
@pytest.mark.parametrize("depth, channels", [(1, 1), (2, 2), (4, 1)])
def test_the_memory_of_networks_is_counted_from_what_they_are(decoder, depth, channels, shape):
    X = np.random.default_rng(0).poisson(4, (30, 64 * channels)).astype(float)
    settings = {"encoder_depth": depth, "encoder_width": 6, "max_epochs": 1}
    on = {"grid": shape, "channels": channels}
    model = ConvMultinomialVAE(2, decoder=decoder, **on, **settings).fit(X)
    networks = [*model._encoder.modules(), *model._decoder.modules()]
    layers = [layer for layer in networks if hasattr(layer, "weight")]
    units = []
    for layer in layers:
        if layer is not getattr(model._encoder, "last", None):
            layer.register_forward_hook(lambda _, given, out: units.append(out[0].numel()))
    model._encoder(torch.from_numpy(X[:1]))
    if decoder == "network":
        model._decoder.bend(torch.zeros(1, 2).double())
    counted = model._size_of_networks(64 * channels)
    assert counted["layers"] == sum(layer.weight.numel() for layer in layers)
    assert counted["hidden"] == sum(units)
