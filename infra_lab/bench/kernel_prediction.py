"""What `kernels.predict` says of a case of the suite `kernels`, with the config that is really launched."""

from infra_lab.bench.kernel_case import Case
from kernels.chips import Chip
from kernels.compile import compile_kernel
from kernels.predict import Prediction, predict
from kernels.registry import all_specs
from kernels.tuned import watch


def prediction_of(case: Case, chip: Chip) -> Prediction | None:
    """Compile the case's kernel with the config that its launcher chooses, and predict it.

    None for a case whose work is not that of its spec (another size, another dtype), and where there is no spec.
    """
    spec = all_specs().get(case.spec)
    if spec is None or spec.work.cost != case.cost or chip.target < spec.min_capability:
        return None
    with watch() as seen:
        case.ours()
    config = next(iter(seen.given.values()), spec.configs[0])
    return predict(spec.work, config, compile_kernel(spec, chip.target, config), chip)
