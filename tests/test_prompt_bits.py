"""Few-bit prompts: the quantiser, packing, files, what is refused, and training with codes."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

import kanmeta
from kanmeta import archive, codebook, errors
from tests.cases import CASES, EXAMPLE, Case, case, kan, saved

FEW = (8, 4, 3, 2)


def error(values: Tensor, book: Tensor, codes: Tensor) -> float:
    return float((values - book[codes.long()]).double().square().sum())


def best_error(values: list[float], levels: int) -> float:
    """Of every way to cut the sorted values into at most ``levels`` groups."""
    ordered = torch.tensor(sorted(values), dtype=torch.float64)
    best = float("inf")
    for k in range(1, min(levels, len(values)) + 1):
        for cuts in itertools.combinations(range(1, len(values)), k - 1):
            groups = torch.tensor_split(ordered, list(cuts))
            best = min(best, sum(float((g - g.mean()).square().sum()) for g in groups))
    return best


@given(
    st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=9),
    st.integers(1, 5),
)
@settings(deadline=None, max_examples=60)
def test_the_quantiser_is_optimal(values: list[float], levels: int) -> None:
    tensor = torch.tensor(values, dtype=torch.float64)
    book, codes = codebook.quantise(tensor, levels)
    assert len(book) <= min(levels, len(set(values)))
    assert torch.equal(book, book.sort().values)
    assert error(tensor, book, codes) <= best_error(values, levels) + 1e-9


@pytest.mark.parametrize("levels", [2, 4, 16, 256])
def test_many_values_are_nearly_optimal_and_better_than_equal_steps(levels: int) -> None:
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) ** 3
    book, codes = codebook.quantise(values, levels)
    assert len(book) == levels
    steps = torch.linspace(float(values.min()), float(values.max()), levels)
    nearest = (values[:, None] - steps).abs().argmin(1)
    assert error(values, book, codes) < 0.7 * error(values, steps, nearest)
    # Lloyd's conditions: every value has its nearest entry, every entry is the mean of its values.
    assert torch.equal((values[:, None] - book).abs().argmin(1), codes.long())
    for level in range(0, levels, max(1, levels // 4)):
        torch.testing.assert_close(values[codes == level].mean(), book[level], rtol=0.05, atol=2e-3)


def test_constant_and_few_values_are_exact() -> None:
    for values in (torch.zeros(7), torch.tensor([3.5]), torch.tensor([1.0, 2.0, 1.0, -4.0])):
        book, codes = codebook.quantise(values, 4)
        assert torch.equal(book[codes.long()], values)


@given(st.sampled_from(codebook.BITS), st.integers(1, 40), st.integers(0, 2**32))
@settings(deadline=None)
def test_packing_is_exact_both_ways(bits: int, number: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (number,), generator=generator).to(torch.uint8)
    packed = codebook.pack(codes, bits)
    assert packed.shape == (codebook.packed_bytes(number, bits),)
    assert torch.equal(codebook.unpack(packed, bits, number), codes)


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", CASES, ids=lambda c: c.name)
def test_round_trip_of_every_case(c: Case, tmp_path: Path) -> None:
    model, path = saved(tmp_path, c, dim_z=2)
    kanmeta.save(model, path, prompt_bits=4)
    fresh = kanmeta.load(c.model(torch.float32, seed=99), path, adapters=c.adapters)
    assert list(fresh.state_dict()) == list(model.state_dict())
    with kanmeta.few_bit_prompts(model, bits=4):
        expected = c.run(model, c.x(dtype=torch.float32))
    assert torch.equal(c.run(fresh, c.x(dtype=torch.float32)), expected)
    for z in kanmeta.prompts(fresh).values():
        assert all(len(column.unique()) <= 16 for column in z.reshape(-1, 2).T)


@pytest.mark.parametrize("bits", FEW)
def test_files_are_as_small_as_promised(bits: int, tmp_path: Path) -> None:
    model = kanmeta.convert(kan(200, 100), dim_z=1)
    kanmeta.save(model, tmp_path / "m.safetensors", dtype=torch.float16, prompt_bits=bits)
    packed = 20_000 / (8 // bits)
    assert (tmp_path / "m.safetensors").stat().st_size < packed + 3000
    fresh = kanmeta.load(kan(200, 100), tmp_path / "m.safetensors")
    before, after = kanmeta.prompts(model)["layers.0"], kanmeta.prompts(fresh)["layers.0"]
    relative = float((before - after).detach().norm() / before.detach().norm())
    assert 0 < relative < {8: 0.02, 4: 0.12, 3: 0.22, 2: 0.4}[bits]


def test_sixteen_bits_are_half_precision(tmp_path: Path) -> None:
    model, path = saved(tmp_path)
    kanmeta.save(model, path, prompt_bits=16)
    with safe_open(path, "pt") as file:
        assert file.get_tensor("layers.0.prompts").dtype == torch.float16
        assert file.get_tensor("layers.0.meta_learner.weight1").dtype == torch.float32
    kanmeta.load(case(EXAMPLE).model(torch.float32), path)


@pytest.mark.parametrize("bits", [0, 1, 5, 32, True, 4.0, "4"])
def test_other_widths_are_refused(bits: object, tmp_path: Path) -> None:
    model, path = saved(tmp_path)
    before = path.read_bytes()
    with pytest.raises(errors.CheckpointError, match="expected one of 2, 3, 4, 8, 16"):
        kanmeta.save(model, path, prompt_bits=bits)  # type: ignore[arg-type]
    assert path.read_bytes() == before


@pytest.mark.parametrize(("value", "bits"), [(float("nan"), 4), (1e6, 16), (float("inf"), 8)])
def test_prompts_that_do_not_fit_are_refused(value: float, bits: int, tmp_path: Path) -> None:
    model, path = saved(tmp_path)
    with torch.no_grad():
        kanmeta.prompts(model)["layers.0"][0, 0] = value
    with pytest.raises(
        errors.CheckpointError, match=r"layers\.0\.prompts has numbers that are not"
    ):
        kanmeta.save(model, path, prompt_bits=bits)


def test_few_bit_files_keep_their_promises(tmp_path: Path) -> None:
    """Same file for the same model; the model is not changed; a converted model is refused."""
    model, path = saved(tmp_path)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    kanmeta.save(model, path, prompt_bits=3)
    first = path.read_bytes()
    kanmeta.save(model, path, prompt_bits=3)
    assert path.read_bytes() == first
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    with pytest.raises(errors.AlreadyConvertedError):
        kanmeta.load(model, path)


def rewritten(path: Path, change: object) -> None:
    """Write the archive in ``path`` again with other tensors and another kanmeta header."""
    from kanmeta import header as headers

    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
    inner = archive.inner_header(path, start)
    text = json.loads(inner[8:])
    metadata = text.pop("__metadata__")
    described = json.loads(metadata["kanmeta"])
    size = len(inner) + max(e["data_offsets"][1] for e in text.values())
    tensors = archive.content(path, start, size)
    change(tensors, described)  # type: ignore[operator]
    metadata["kanmeta"] = json.dumps(described)
    outer = json.dumps({"format": headers.FORMAT, "kanmeta": "x"})
    archive.write(tensors, metadata, path, outer)


NAME = "layers.0.prompts"


def short_codes(tensors: dict[str, Tensor], header: dict[str, object]) -> None:
    tensors[f"{NAME}.codes"] = tensors[f"{NAME}.codes"][:-1]


def wide_codebook(tensors: dict[str, Tensor], header: dict[str, object]) -> None:
    tensors[f"{NAME}.codebook"] = torch.zeros(1, 17)


def long_codebook(tensors: dict[str, Tensor], header: dict[str, object]) -> None:
    tensors[f"{NAME}.codebook"] = torch.zeros(1, 257)


def short_codebook(tensors: dict[str, Tensor], header: dict[str, object]) -> None:
    tensors[f"{NAME}.codebook"] = tensors[f"{NAME}.codebook"][:, :2].clone()


def signed_codes(tensors: dict[str, Tensor], header: dict[str, object]) -> None:
    tensors[f"{NAME}.codes"] = -tensors[f"{NAME}.codes"].to(torch.int8)


def integer_codebook(tensors: dict[str, Tensor], header: dict[str, object]) -> None:
    tensors[f"{NAME}.codebook"] = tensors[f"{NAME}.codebook"].to(torch.int32)


def byte_codebook(tensors: dict[str, Tensor], header: dict[str, object]) -> None:
    tensors[f"{NAME}.codebook"] = tensors[f"{NAME}.codebook"].to(torch.float8_e4m3fn)


def codebook_of_nan(tensors: dict[str, Tensor], header: dict[str, object]) -> None:
    tensors[f"{NAME}.codebook"][0, 1] = float("nan")


def earlier_format(tensors: dict[str, Tensor], header: dict[str, object]) -> None:
    wide_codebook(tensors, header)
    header["format"] = 2


def broken_bits(tensors: dict[str, Tensor], header: dict[str, object]) -> None:
    header["prompt_bits"] = 4.0


def no_codebook(tensors: dict[str, Tensor], header: dict[str, object]) -> None:
    del tensors[f"{NAME}.codebook"]


def other_bits(tensors: dict[str, Tensor], header: dict[str, object]) -> None:
    header["prompt_bits"] = 2


def odd_bits(tensors: dict[str, Tensor], header: dict[str, object]) -> None:
    header["prompt_bits"] = 5


def huge_shape(tensors: dict[str, Tensor], header: dict[str, object]) -> None:
    header["layers"][0]["shape"] = [2**40, 2**40, 9]  # type: ignore[index]


def negative_shape(tensors: dict[str, Tensor], header: dict[str, object]) -> None:
    header["layers"][0]["shape"] = [-4, 5, 9]  # type: ignore[index]


DAMAGE = {
    short_codes: "codes: expected",
    wide_codebook: r"codes: expected \(20,\), found \(10,\)",  # one to a byte
    long_codebook: r"codebook: expected \(1, 1 to 256\)",
    short_codebook: "the codebook has 2 entries",
    signed_codes: "codes of torch.int8",
    integer_codebook: "a codebook of torch.int32",
    byte_codebook: "a codebook of torch.float8_e4m3fn",
    codebook_of_nan: "codebook has numbers that are not finite",
    earlier_format: r"codebook: expected \(1, 1 to 16\)",
    broken_bits: "damaged header",
    no_codebook: "codebook: expected",
    other_bits: "codes: expected",
    odd_bits: "damaged header",
    huge_shape: "codes: expected",
    negative_shape: "damaged header",
}


@pytest.mark.parametrize("change", DAMAGE, ids=lambda f: f.__name__)
def test_wrong_content_is_refused(change: object, tmp_path: Path) -> None:
    model, path = saved(tmp_path)
    kanmeta.save(model, path, prompt_bits=4)
    rewritten(path, change)
    fresh = case(EXAMPLE).model(torch.float32)
    before = {name: t.clone() for name, t in fresh.state_dict().items()}
    with pytest.raises(errors.CorruptCheckpointError, match=DAMAGE[change]):  # type: ignore[index]
        kanmeta.load(fresh, path)
    assert all(torch.equal(t, before[name]) for name, t in fresh.state_dict().items())
    assert [*fresh.state_dict()] == [*before]


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    """A tensor of 4 GB of zeros takes 4 MB in the file; the model says that it is not wanted."""
    import zlib

    model, path = saved(tmp_path)
    kanmeta.save(model, path, prompt_bits=4)
    raw = path.read_bytes()
    zeros = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = zeros.compress(bytes(10_000_000)) + zeros.flush()
    with pytest.raises(errors.CorruptCheckpointError, match="longer than the 1000 bytes"):
        archive._Pieces(b"\x01" + len(bomb).to_bytes(4, "little") + bomb).take(1000)
    path.write_bytes(raw)
    kanmeta.load(case(EXAMPLE).model(torch.float32), path)


def wide_meta_learner(tensors: dict[str, Tensor], header: dict[str, object]) -> None:
    """So wide that the file, which stays as small as it was, would become a megabyte."""
    for name, tensor in tensors.items():
        kind = name.rpartition(".")[2]
        if kind in ("weight1", "bias1", "weight2"):
            shape = [*tensor.shape]
            shape[kind == "weight2"] = 20_000
            tensors[name] = torch.zeros(shape)
    header["meta_learners"][0]["hidden"] = 20_000  # type: ignore[index]


def test_what_only_the_header_wants_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = saved(tmp_path)
    kanmeta.save(model, path, prompt_bits=4)
    rewritten(path, wide_meta_learner)
    assert path.stat().st_size < 4000
    kanmeta.load(case(EXAMPLE).model(torch.float32), path)  # a megabyte is none too many
    monkeypatch.setattr(archive, "_ANY_FILE", 500_000)
    monkeypatch.delattr(archive, "content")
    with pytest.raises(errors.CorruptCheckpointError, match="would unpack to"):
        kanmeta.load(case(EXAMPLE).model(torch.float32), path)


def test_constants_are_not_packed_so_tightly_that_the_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = kanmeta.convert(kan(4000, 200, 10), dim_z=1, hidden=4), tmp_path / "zeros"
    for prompts in kanmeta.prompts(model).values():
        prompts.data.zero_()
    kanmeta.save(model, path, prompt_bits=4)
    monkeypatch.setattr(archive, "_ANY_FILE", 20_000)
    with pytest.raises(errors.CorruptCheckpointError, match="would unpack to"):
        kanmeta.load(kan(4000, 200, 10), path)
    kanmeta.save(model, path, prompt_bits=4)
    same = kanmeta.load(kan(4000, 200, 10), path)
    assert not any(z.any() for z in kanmeta.prompts(same).values())


def test_pieces_that_hold_nothing_are_refused() -> None:
    raw = b"\x01" + (2).to_bytes(4, "little") + b"\x03\x00"  # deflate's shortest
    with pytest.raises(errors.CorruptCheckpointError, match="a piece holds nothing"):
        archive._Pieces(1000 * raw).take(10)


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_any_damage_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    model, path = saved(folder)
    kanmeta.save(model, path, prompt_bits=4)
    raw = bytearray(path.read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "zero"]))
    at = data.draw(st.integers(0, len(raw) - 1))
    if kind == "flip":
        raw[at] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del raw[at:]
    elif kind == "insert":
        raw[at:at] = data.draw(st.binary(min_size=1, max_size=9))
    else:
        raw[at : at + 16] = bytes(len(raw[at : at + 16]))
    fresh = case(EXAMPLE).model(torch.float32)
    path.write_bytes(raw)
    try:
        kanmeta.load(fresh, path)
    except errors.CheckpointError:
        assert not any("prompts" in name for name in fresh.state_dict())
    else:  # a change without effect, of the text of the outer header, say
        for a, b in zip(model.state_dict().values(), fresh.state_dict().values(), strict=True):
            assert a.shape == b.shape


# --- training with codes ------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_codes_stay_fixed_while_codebooks_are_trained(optimizer: type, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x, y = kanmeta.convert(kan(20, 30, 3), dim_z=2), torch.rand(64, 20), torch.rand(64, 3)
    with kanmeta.few_bit_prompts(model, bits=3):
        start = [z.detach().clone() for z in kanmeta.prompts(model).values()]
        first = float(nn.functional.mse_loss(model(x), y).detach())
        steps = optimizer(model.parameters(), lr=1e-2)
        for _ in range(20):
            steps.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            steps.step()
        for before, after in zip(start, kanmeta.prompts(model).values(), strict=True):
            assert not torch.equal(before, after)
            for column in range(2):
                old, new = before[..., column].flatten(), after.detach()[..., column].flatten()
                for level in old.unique():
                    assert float(new[old == level].std(correction=0)) < 1e-6
    assert float(nn.functional.mse_loss(model(x), y).detach()) < first
    kanmeta.save(model, tmp_path / "m.safetensors", prompt_bits=3)
    fresh = kanmeta.load(kan(20, 30, 3), tmp_path / "m.safetensors")
    torch.testing.assert_close(fresh(x), model(x), rtol=1e-4, atol=1e-4)


def test_the_gradient_is_that_of_the_codebook_and_ends_with_the_context() -> None:
    model, x = kanmeta.convert(kan(20, 30)), torch.rand(8, 20)
    z = kanmeta.prompts(model)["layers.0"]
    with kanmeta.few_bit_prompts(model, bits=2):
        model(x).square().sum().backward()
        tied = z.grad.clone()
    z.grad = None
    model(x).square().sum().backward()
    plain = z.grad
    for level in z.unique():
        assert bool((z == level).any())
        torch.testing.assert_close(
            tied[z == level], plain[z == level].sum().expand((z == level).sum())
        )
    with (
        pytest.raises(errors.PlanError, match="expected one of"),
        kanmeta.few_bit_prompts(model, 5),
    ):
        pass


def test_with_fewer_edges_a_codebook_is_longer_unless_that_takes_too_much_room() -> None:
    """As 1 / sqrt(edges); a codebook takes no more room than codes, no code more than a byte."""
    assert codebook.layer_levels(16, [100, 400, 1600]) == [16, 32, 16]
    assert codebook.layer_levels(16, [25_088, 320]) == [16, 58]
    assert codebook.layer_levels(11, [432, 4608, 36_864]) == [86, 31, 11]
    assert codebook.layer_levels(100, [10**6, 10**4]) == [100, 256]
    assert codebook.layer_levels(256, [10, 1000]) == [256, 256]
    assert codebook.layer_levels(1, [1, 2]) == [1, 1]


@pytest.mark.parametrize(("bits", "levels"), [(4, (16, 50)), (2, (4, 12))])
def test_a_file_has_the_longer_codebooks(
    bits: int, levels: tuple[int, int], tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    model = kanmeta.convert(kan(100, 32, 10), hidden=4)
    kanmeta.save(model, path, prompt_bits=bits)
    fresh = kanmeta.load(kan(100, 32, 10), path)
    with kanmeta.few_bit_prompts(model, bits):
        for z, rounded in zip(*(kanmeta.prompts(m).values() for m in (fresh, model)), strict=True):
            assert torch.equal(z, rounded)
    assert tuple(len(z.unique()) for z in kanmeta.prompts(fresh).values()) == levels
    size = kanmeta.summary(model, prompt_bits=bits).edge_bytes_after
    assert size == pytest.approx((3200 * bits + 320 * math.log2(levels[1])) / 3520 / 8)


def test_the_summary_says_how_many_bytes_an_edge_takes() -> None:
    model = kanmeta.convert(kan(20, 30))
    assert kanmeta.summary(model).edge_bytes_before == 36
    assert kanmeta.summary(model).edge_bytes_after == 4
    assert kanmeta.summary(model, prompt_bits=4).edge_bytes_after == 0.5
    assert "36 -> 0.5 bytes" in str(kanmeta.summary(model, prompt_bits=4))
    with pytest.raises(errors.CheckpointError):
        kanmeta.summary(model, prompt_bits=7)
