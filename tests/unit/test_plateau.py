"""When a validation loss stands still, as a job goes on."""

from gptjobs.plateau import FEW_EVALUATIONS, Plateau, PlateauWatch


def told(losses: list[float], watch: PlateauWatch | None = None) -> list[Plateau]:
    watch = watch or PlateauWatch()
    found = [watch.add(100 * place, loss) for place, loss in enumerate(losses, start=1)]
    return [each for each in found if each is not None]


def test_a_loss_that_stands_still_is_told_once_however_long_it_does() -> None:
    (found,) = told([3.0] * 40)
    assert found == Plateau(since=800, step=1200, before=3.0, now=3.0)
    assert found.step == 100 * FEW_EVALUATIONS
    assert str(found) == "the validation loss stands still: 3.0000 around step 800, 3.0000 around step 1200"


def test_a_loss_that_falls_is_none_until_it_stands() -> None:
    falling = [4.0 * 0.98**place for place in range(30)]
    assert told(falling) == []
    (found,) = told(falling + [falling[-1]] * 30)
    assert found.step > 3000 and abs(found.now - falling[-1]) < 1e-9


def test_a_loss_that_rises_is_no_plateau() -> None:
    assert told([3.0 * 1.05**place for place in range(30)]) == []


def test_noise_around_a_level_is_one_and_a_few_evaluations_are_none() -> None:
    noisy = [3.0 + (0.004 if place % 2 else -0.004) for place in range(20)]
    assert len(told(noisy)) == 1
    assert told(noisy[: FEW_EVALUATIONS - 1]) == []


def test_an_attempt_that_evaluates_the_step_before_again_counts_it_once() -> None:
    watch = PlateauWatch()
    assert not any(watch.add(100, 3.0) for _ in range(FEW_EVALUATIONS))


def test_what_an_earlier_attempt_told_is_not_told_again() -> None:
    assert told([3.0] * 40, PlateauWatch(is_told=True)) == []
