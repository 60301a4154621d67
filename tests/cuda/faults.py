"""The faults that are planted in the CUDA kernels, and what is known to notice each; `test_faults.py` has the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.kernels.sanitizing import ROOT

RACE = ("thread", "data race")
OUTSIDE = ("address,undefined", "AddressSanitizer: heap-")  # beyond an array, where nothing is or something was freed
CRASH = ("address,undefined", "SEGV")
NULL = ("address,undefined", "null pointer")
MISALIGNED = ("address,undefined", "misaligned address")
INDEX = ("address,undefined", "out of bounds for type")
VALUES = ("address,undefined", "expected")
WRONG = ("thread", "expected")  # values as well
NOTHING = ("thread", "")  # the kernels are right without what is missing


@dataclass(frozen=True)
class Fault:
    """Text of a file of csrc, of which one place, `at` from 0, is replaced."""

    family: str  # whose kernels have it, and whose program looks for it
    file: str
    name: str
    old: str
    new: str
    seen: tuple[str, str]  # the tool that notices it, and a part of what that says
    at: int = 0
    all_cases: bool = False  # whether the few cases of the program, or the few variants of the kernels, are not enough

    def __str__(self) -> str:
        return f"{self.family}: {self.name}"


CUDA = "kernels/cuda/"
FINISH, FINISH_OWN, LISTS, NUMBERS = CUDA + "finish.h", CUDA + "finish_own.h", CUDA + "lists.h", CUDA + "numbers.h"
POSITIONS, TILES, WEIGHTS = CUDA + "positions.h", CUDA + "tiles.h", CUDA + "weights.h"
SUM_NORMS, GRAM_FEW, GRAM_MANY = CUDA + "sum_norms.cu", CUDA + "gram_few.cu", CUDA + "gram_many.cu"
SQUARED_NORMS, WEIGHTED_SUM, PRODUCTS = CUDA + "squared_norms.cu", CUDA + "weighted_sum.cu", CUDA + "products.cu"
FEW_TASKS, MANY_TASKS, PLAN = CUDA + "sum_moments_few.cu", CUDA + "sum_moments_many.cu", CUDA + "sum_moments.cpp"
MOMENTS, UPDATES = CUDA + "sum_moments.h", CUDA + "updates.cu"
GRADNORM, GNR, SOLVER = "kernels/gradnorm_update.h", "kernels/gnr_update.h", "kernels/max_min.h"

BARRIER, FENCE, SYNC = "__syncthreads();", "__threadfence();", "team_.sync();"


def dropped(family: str, file: str, text: str, names: Sequence[str], needless: Sequence[str] = ()) -> list[Fault]:
    """Every place of the text is emptied in turn; the places have names, of which all but the needless race without it."""
    count = (ROOT / "csrc" / file).read_text().count(text)
    assert count == len(names) and set(needless) <= set(names), f"{text} is {count} times in {file}"
    what = f"the {'fence' if text is FENCE else 'barrier'} "
    return [
        Fault(family, file, what + name, text, "", NOTHING if name in needless else RACE, at)
        for at, name in enumerate(names)
    ]


TICKETS = ["before a ticket", "after a ticket"]
FINISH_BARRIERS = [
    *TICKETS, "inside sum_rows", "after sum_rows", "after finish", "inside block_sums", "after block_sums"
]  # fmt: skip
AFTER = ["after sum_rows", "after finish", "after block_sums"]
OF_TILES = ["after a tile is read", "after a tile's products", "before finish"]
SOLVER_SYNCS = [
    "after the matrix of semidefinite", "after the factor of semidefinite", "at the start of solve",
    "inside evaluate", "after evaluate",
    "after the slacks", "after the gradient", "after the Hessian", "after its diagonal is read", "after its scale",
    "after x is read", "after x is centred", "after direction",
    "of a column's factor", "of substitution", "between substitutions", "of substitution back",
    "after v is read", "after v is moved", "after v is taken back", "after advance",
]  # fmt: skip

MISSING = [
    *dropped("sum_norms", FINISH, BARRIER, FINISH_BARRIERS, AFTER),
    *dropped("sum_norms", FINISH, FENCE, TICKETS),
    *dropped("sum_norms", GRADNORM, SYNC, ["of GradNorm's ratios", "of GradNorm's weights", "of GradNorm's finite numbers"]),
    *dropped("lists", FINISH, BARRIER, FINISH_BARRIERS, AFTER),
    *dropped("lists", FINISH, FENCE, TICKETS),
    *dropped("lists", GRAM_MANY, BARRIER, [f"{name} of gram_many" for name in OF_TILES], ["before finish of gram_many"]),
    *dropped(
        "lists", SQUARED_NORMS, BARRIER, ["after zeros", "after the warps' sums", "before finish of squared_norms"],
        ["before finish of squared_norms"],
    ),
    *dropped("lists", WEIGHTED_SUM, BARRIER, ["after the weights"]),
    *dropped("products", FINISH, BARRIER, FINISH_BARRIERS, FINISH_BARRIERS[2:]),
    *dropped("products", FINISH, FENCE, TICKETS),
    *dropped(
        "products", PRODUCTS, BARRIER,
        [f"{name} of {kernel}" for kernel in ("cross_gram", "sample_gram") for name in OF_TILES],
        ["before finish of cross_gram", "before finish of sample_gram"],
    ),
    *dropped("sum_moments", FINISH, BARRIER, FINISH_BARRIERS, ["after sum_rows", "inside block_sums", "after block_sums"]),
    *dropped("sum_moments", FINISH, FENCE, TICKETS),
    *dropped(
        "sum_moments", FEW_TASKS, BARRIER,
        ["before a task's rows", "after a task's rows", "after fold_rows", "before sum_columns", "after sum_columns",
         "before the step of few"],
    ),
    *dropped(
        "sum_moments", MANY_TASKS, BARRIER,
        ["after a sample is read", "after the sums over samples", "before the step of many"],
    ),
    *dropped("updates", UPDATES, BARRIER, ["of weigh"]),
    *dropped("updates", GRADNORM, SYNC, ["of GradNorm's ratios", "of GradNorm's weights", "of GradNorm's finite numbers"]),
    *dropped(
        "updates", GNR, SYNC,
        ["after the averages", "of GNR's finite numbers", "before the tasks' order", "after the tasks' order",
         "after the numerators", "before solve", "after the new weights", "of the shares of noise"],
        ["after the averages", "before solve"],
    ),
    *dropped("updates", SOLVER, SYNC, SOLVER_SYNCS),
]  # fmt: skip


def planted(family: str, *faults: tuple[str, str, str, str, tuple[str, str]]) -> list[Fault]:
    """Those of a family: file, name, text, what replaces its first place, and what that makes a tool say."""
    return [Fault(family, *fault) for fault in faults]


SUM_OF_NORMS = [
    *planted(
        "sum_norms",
        (SUM_NORMS, "tiles taken by several blocks", "first_group += gridDim.x * tile", "first_group += tile", RACE),
        (FINISH, "two blocks with one row of partial results",
         "static_cast<int64_t>(block) * width + i", "static_cast<int64_t>(block / 2) * width + i", RACE),
        (FINISH, "groups' rows over blocks' rows",
         "static_cast<int64_t>(f.blocks + i_group)", "static_cast<int64_t>(i_group)", WRONG),
        (SUM_NORMS, "a bound one too large", "if (group >= groups) break;", "if (group > groups) break;", OUTSIDE),
        (SUM_NORMS, "no bound", "if (group >= groups) break;", "", OUTSIDE),
        (SUM_NORMS, "a bound one too small", "if (group >= groups) break;", "if (group >= groups - 1) break;", VALUES),
        (SUM_NORMS, "no mask of missing gradients", "if (p.present >> k & 1) read", "if (k < p.tasks) read", CRASH),
        (POSITIONS, "a wrong stride",
         "coordinates.at[dim] * place.strides[dim]", "coordinates.at[dim] * place.strides[1]", OUTSIDE),
        (SUM_NORMS, "16 bytes at a time where they are not aligned",
         "if (!vector) return", "if (false) return", VALUES),
        (FINISH, "the last group as large as the others",
         "f.blocks - first < f.group ? f.blocks - first : f.group", "f.group", VALUES),
        (FINISH, "a ticket that is not put back", "if (last) *ticket = 0;", "", VALUES),
        (FINISH, "a warp's sum without its last step", "distance = 16", "distance = 8", VALUES),
        (FINISH, "columns that are not there", "if (static_cast<int>(threadIdx.x) < width) {", "{", INDEX),
    ),
    Fault(
        "sum_norms", FINISH, "a barrier for half of the threads",
        BARRIER, "if (threadIdx.x < 64) __syncthreads();", RACE, at=5,
    ),
]  # fmt: skip

OF_LISTS = [
    *planted(
        "lists",
        (GRAM_FEW, "a bound one too large (gram_few)", "at < length)", "at <= length)", OUTSIDE),
        (GRAM_FEW, "no mask of missing gradients (gram_few)", "data != nullptr && at < length", "at < length", CRASH),
        (GRAM_FEW, "no mask of tasks (gram_few)",
         "k < tasks ? p.columns.pointer(tile.column, k) : nullptr", "p.columns.pointer(tile.column, k)", OUTSIDE),
        (GRAM_FEW, "accumulate forgotten (gram_few)",
         "total + (p.accumulate ? p.result[n] : 0.0f)", "total", VALUES),
        (GRAM_FEW, "the other triangle", "values[i < j ?", "values[i > j ?", VALUES),
        (GRAM_FEW, "16 bytes at a time where they are not aligned (gram_few)",
         "if (!p.columns.vector) return", "if (false) return", MISALIGNED),
        (GRAM_FEW, "tiles taken by several blocks (gram_few)", "index += gridDim.x", "index += 1", VALUES),
        (GRAM_FEW, "the length of another column", "p.columns.lengths[tile.column]", "p.columns.lengths[0]", VALUES),
        (GRAM_FEW, "sums that do not begin at 0", "float sums[kPairs] = {};", "float sums[kPairs];", WRONG),
        (LISTS, "a tile of the column before", "columns.ends[middle] > index", "columns.ends[middle] >= index", VALUES),
        (LISTS, "columns without their last tile",
         "(columns.lengths[c] + size - 1) / size", "columns.lengths[c] / size", VALUES),
        (LISTS, "pointers of another column", "pointers[column * row + k]", "pointers[column * tasks + k]", OUTSIDE),
        (GRAM_MANY, "a bound one too large (gram_many)", "position < p.columns", "position <= p.columns", OUTSIDE),
        (GRAM_MANY, "one task too many", "k < count ?", "k <= count ?", OUTSIDE),
        (GRAM_MANY, "accumulate forgotten (gram_many)", "if (p.accumulate) total +=", "if (false) total +=", VALUES),
        (GRAM_MANY, "no bound of the result", "if (i >= tasks || j > i) return;", "if (j > i) return;", OUTSIDE),
        (GRAM_MANY, "half of the result", "p.result[i * tasks + j] = p.result[j * tasks + i] = total",
         "p.result[i * tasks + j] = total", VALUES),
        (GRAM_MANY, "a variant for fewer tasks", "return run<2>(device, p);", "return run<1>(device, p);", VALUES),
        (TILES, "rows that a tile does not have", "if (row >= kRows) break;", "", INDEX),
        (TILES, "fewer rows than there are",
         "(kRows + kDown - 1) / kDown", "(kRows > kDown ? kRows / kDown : 1)", VALUES),
        (GRAM_MANY, "a workspace that is too small", "tile_numbers(device, Products<4, 4, true>::kWidth)",
         "tile_numbers(device, Products<4, 4, true>::kWidth) / 8", OUTSIDE),
        (SQUARED_NORMS, "a bound one too large (squared_norms)", "if (at < p.columns", "if (at <= p.columns", OUTSIDE),
        (SQUARED_NORMS, "accumulate forgotten (squared_norms)",
         "values[k] + (p.accumulate ? p.result[k] : 0.0f)", "values[k]", VALUES),
        (SQUARED_NORMS, "shared memory that nobody wrote", "sums[i / kMaxTasks][i % kMaxTasks] = 0;", ";", VALUES),
        (SQUARED_NORMS, "one row for all warps", "sums[warp][k] += part", "sums[0][k] += part", RACE),
        (SQUARED_NORMS, "one thread too many",
         "if (static_cast<int>(threadIdx.x) < tasks) {", "if (static_cast<int>(threadIdx.x) <= tasks) {", INDEX),
        (WEIGHTED_SUM, "a bound one too large (weighted_sum)",
         "if (at >= length) break;", "if (at > length) break;", OUTSIDE),
        (WEIGHTED_SUM, "a bound one too small", "if (at >= length) break;", "if (at >= length - 1) break;", VALUES),
        (WEIGHTED_SUM, "what is missing has a weight", "if (!arrived[n]) continue;", "", VALUES),
        (WEIGHTED_SUM, "tiles taken by several blocks (weighted_sum)", "index += gridDim.x", "index += 1", RACE),
        (WEIGHTED_SUM, "the weight of another task", "weights[first_task + n]", "weights[n]", VALUES),
        (WEIGHTS, "a stride forgotten",
         "static_cast<const float*>(data)[i * stride]", "static_cast<const float*>(data)[i]", VALUES),
        (FINISH, "groups as if they began at 0", "(first + row) * width + i", "row * width + i", VALUES),
    ),
    Fault(
        "lists", NUMBERS, "16-bit numbers in the wrong order", "words[i / 2] >> (16 * (i % 2))",
        "words[i / 2] >> (16 * (1 - i % 2))", VALUES, all_cases=True,
    ),
]  # fmt: skip

OF_PRODUCTS = [
    *planted(
        "products",
        (PRODUCTS, "a bound one too large (cross_gram)", "position < p.positions.count);\n      };",
         "position <= p.positions.count);\n      };", OUTSIDE),
        (PRODUCTS, "no bound", "count = inside ? side.count : 0", "count = side.count", OUTSIDE),
        (PRODUCTS, "a bound one too large (sample_gram)", "position < count);", "position <= count);", OUTSIDE),
        (PRODUCTS, "no mask of missing gradients",
         " || !(side.present >> k & 1)) return nullptr;", ") return nullptr;", CRASH),
        (PRODUCTS, "samples as another task has them",
         "sample * places[k].sample_stride", "sample * places[0].sample_stride", VALUES),
        (PRODUCTS, "a tile of one sample",
         "sample = position / p.positions.count", "sample = first / p.positions.count", VALUES),
        (PRODUCTS, "weights without a bound", "at < count ? p.weights.at(at / p.positions.count) : 0.0f",
         "p.weights.at(at / p.positions.count)", OUTSIDE),
        (PRODUCTS, "the weight of another sample",
         "p.weights.at(at / p.positions.count)", "p.weights.at(at % p.samples)", VALUES),
        (PRODUCTS, "one weight too few", "n < K; n += kTileThreads", "n < K - 1; n += kTileThreads", VALUES),
        (PRODUCTS, "no bound of the rows",
         "if (i < p.left.count && j < p.right.count)", "if (j < p.right.count)", OUTSIDE),
        (PRODUCTS, "no bound of the columns",
         "if (i < p.left.count && j < p.right.count)", "if (i < p.left.count)", OUTSIDE),
        (PRODUCTS, "rows as if they lay beside each other", "i * p.stride + j", "i * p.right.count + j", VALUES),
        (PRODUCTS, "half of the result", "p.result[i * tasks + j] = p.result[j * tasks + i] = total",
         "p.result[i * tasks + j] = total", VALUES),
        (PRODUCTS, "tiles taken by several blocks", "int64_t{gridDim.x} * K", "K", VALUES),
        (TILES, "16 bytes at a time where they are not aligned",
         "return vector ? load<Dtype::f32, 4>(rows) : load<Dtype::f32, 1>(rows);",
         "return load<Dtype::f32, 4>(rows);", OUTSIDE),
        (TILES, "rows that a tile does not have", "if (row >= kRows) break;", "", INDEX),
        (TILES, "a tile without its last positions", "first < K / 4;", "first < K / 4 - kTogether;", VALUES),
        (POSITIONS, "a wrong stride",
         "coordinates.at[dim] * place.strides[dim]", "coordinates.at[dim] * place.strides[1]", OUTSIDE),
    ),
    Fault("products", TILES, "positions of 16 bits", "(position + v) / 4", "position / 4", VALUES, all_cases=True),
]  # fmt: skip

OF_MOMENTS = [
    *planted(
        "sum_moments",
        (FEW_TASKS, "a bound of samples one too large",
         "p.present >> k & 1 && i < last", "p.present >> k & 1 && i <= last", OUTSIDE),
        (FEW_TASKS, "no bound of what is stored", "if (i < last) sum.store", "sum.store", OUTSIDE),
        (FEW_TASKS, "no mask of missing gradients (few)",
         "p.present >> k & 1 && i < last", "k < p.tasks && i < last", CRASH),
        (FEW_TASKS, "no bound of positions (few)", "group < groups ? first + row : last", "first + row", OUTSIDE),
        (FEW_TASKS, "shares that overlap (few)", "last = p.batch * (split + 1) / splits", "last = p.batch", RACE),
        (FEW_TASKS, "shares that leave samples out (few)", "first = p.batch * split / splits",
         "first = (p.batch * split + splits - 1) / splits", VALUES),
        (FEW_TASKS, "tiles taken by several blocks (few)", "tile += gridDim.x / splits", "tile += 1", VALUES),
        (FEW_TASKS, "lanes beyond a sample's", "thread & (p.lanes - 1)", "thread", VALUES),
        (FEW_TASKS, "rows of lanes that are not added up",
         "if (rows > 1) fold_rows<Capacity, V>(p.lanes, sums, m);", "", VALUES),
        (FEW_TASKS, "shared memory that nobody wrote",
         "for (int pair = 0; pair < kPairs; ++pair) m[pair][thread] = 0;", ";", VALUES),
        (FEW_TASKS, "more threads than pairs",
         "if (thread < pairs) values[thread] = own[0];", "values[thread] = own[0];", INDEX),
        (FEW_TASKS, "the other triangle", "pair = k > j ?", "pair = k < j ?", VALUES),
        (FEW_TASKS, "samples as another task has them",
         "i * p.grads[k].sample_stride", "i * p.grads[0].sample_stride", VALUES),
        (FEW_TASKS, "sums of the tile before (few)",
         "for (int i = 0; i < Capacity * V; ++i) sums[i] = 0;", ";", VALUES),
        (FEW_TASKS, "16 bytes at a time where they are not aligned",
         "if (!vector) return", "if (false) return", VALUES),
        (FEW_TASKS, "a step that nobody asked for (few)", "if (!p.step) return;", "", OUTSIDE),
        (MANY_TASKS, "no bound of positions (many)",
         "own < p.positions.count && task < p.tasks", "task < p.tasks", OUTSIDE),
        (MANY_TASKS, "no mask of missing gradients (many)",
         "task < p.tasks && (p.present >> task & 1)", "task < p.tasks", CRASH),
        (MANY_TASKS, "a sample after the last", "if (sample + 1 < last) load();", "load();", OUTSIDE),
        (MANY_TASKS, "one tile for all samples", "turn ^= 1;\n    float x", "float x", RACE),
        (MANY_TASKS, "sums stored beyond the positions",
         "< kAcross && position < p.positions.count)", "< kAcross)", OUTSIDE),
        (MANY_TASKS, "sums over one task too few", "k < p.tasks; ++k) total", "k < p.tasks - 1; ++k) total", VALUES),
        (MANY_TASKS, "no bound of the result", "if (k >= p.tasks || j > k) continue;", "if (j > k) continue;", OUTSIDE),
        (MANY_TASKS, "half of the result",
         "p.Q[k * p.tasks + j] = p.Q[j * p.tasks + k] =", "p.Q[k * p.tasks + j] =", VALUES),
        (MANY_TASKS, "blocks of tiles as if each had its own", "splits > 1 ? own_tile : static_cast<int>(blockIdx.x)",
         "static_cast<int>(blockIdx.x)", VALUES),
        (FINISH_OWN, "sums that do not begin at 0", "for (int i = 0; i < N; ++i) own[i] = 0;", ";", VALUES),
        (FINISH_OWN, "groups' rows over blocks' rows",
         "level == 0 ? block : f.blocks + i_group", "level == 0 ? block : i_group", VALUES),
        (FINISH_OWN, "the last group as large as the others",
         "f.blocks - first < f.group ? f.blocks - first : f.group", "f.group", VALUES),
        (FINISH_OWN, "one ticket for all groups",
         "level == 0 ? f.tickets + 1 + i_group : f.tickets", "f.tickets", VALUES),
        (MOMENTS, "tickets of another tile", "tile * (1 + samples.groups())", "tile", VALUES),
        (MOMENTS, "partial results of another tile",
         "static_cast<int64_t>(tile) * (samples.blocks", "static_cast<int64_t>(0) * (samples.blocks", RACE),
        (PLAN, "samples shared where there are no positions",
         "p.positions.count == 0 ? 0 : p.batch", "p.batch", VALUES),
        (PLAN, "a workspace that is too small",
         "tiles * rows_of(p.samples) * kernel.share", "rows_of(p.samples) * kernel.share", OUTSIDE),
        (PLAN, "lanes of many tasks", "while (kernel.lanes && p.lanes", "while (p.lanes", VALUES),
    ),
    Fault(
        "sum_moments", MANY_TASKS, "bfloat16 as float16", "give<Dtype::bf16>(x)", "give<Dtype::f16>(x)", VALUES,
        all_cases=True,
    ),
    Fault(
        "sum_moments", MANY_TASKS, "8 numbers of 16 bits in place of 4", "(together(dtype) ? n * V : 0)", "0", VALUES,
        all_cases=True,
    ),
]  # fmt: skip

OF_UPDATES = planted(
    "updates",
    (UPDATES, "a bound one too large", "if (k < p.tasks) {", "if (k <= p.tasks) {", NULL),
    (UPDATES, "a loss that is not there",
     "there ? static_cast<double>(weight) * value : 0", "static_cast<double>(weight) * value", VALUES),
    (UPDATES, "a message without its head", "if (k < 2) p.message[k] = 1;", "if (k < 1) p.message[k] = 1;", VALUES),
    (UPDATES, "weights as if they lay beside each other", "k * p.weights_stride", "k", VALUES),
    (UPDATES, "float64 as float32",
     "*static_cast<const double*>(loss.data)", "*static_cast<const float*>(loss.data)", VALUES),
    (UPDATES, "a sum by every thread", "if (k != 0) return;", "", RACE),
    (UPDATES, "a workspace that is too small", "return GnrUpdate<float, BlockTeam>::workspace(tasks);",
     "return GnrUpdate<float>::workspace(tasks);", OUTSIDE),
    (GRADNORM, "an update by every thread",
     "if (team_.rank() == 0) a_.counters[0] += 1;", "a_.counters[0] += 1;", VALUES),
    (GRADNORM, "a refusal by every thread",
     "if (team_.rank() == 0) a_.counters[1] += 1;", "a_.counters[1] += 1;", VALUES),
    (GRADNORM, "a bound one too large (GradNorm)",
     "k < T_; k += team_.size()) update_task", "k <= T_; k += team_.size()) update_task", OUTSIDE),
    (GNR, "an order by every thread", "if (team_.rank() == 0) {\n      Index next", "{\n      Index next", RACE),
    (GNR, "rows as if they lay beside each other", "k * row_stride", "k", VALUES),
    (GNR, "tasks in another order", "a_.weights[task(row)] = weight", "a_.weights[row] = weight", VALUES),
    (SOLVER, "a column without its last row", "i < n_; i += team_.size()) {\n        double* Li",
     "i < n_ - 1; i += team_.size()) {\n        double* Li", VALUES),
    (SOLVER, "a root by every thread", "if (team_.rank() == 0) root_[j] = root;", "root_[j] = root;", RACE),
    (SOLVER, "a workspace without one matrix", "return 6 * tasks * tasks", "return 5 * tasks * tasks", OUTSIDE),
    (SOLVER, "no step back", "if (reached > worst_ + 0.3) {", "if (false) {", VALUES),
)  # fmt: skip

FAULTS = [*MISSING, *SUM_OF_NORMS, *OF_LISTS, *OF_PRODUCTS, *OF_MOMENTS, *OF_UPDATES]


def table() -> str:
    """What is said of each fault in each family: faults of one kind in a row, whatever kernel has them."""
    words = {
        RACE: "race", OUTSIDE: "outside", CRASH: "nowhere", NULL: "nowhere", MISALIGNED: "aligned", INDEX: "index",
        VALUES: "values", WRONG: "values",
    }  # fmt: skip
    families = list(dict.fromkeys(fault.family for fault in FAULTS))
    rows: dict[str, dict[str, list[str]]] = {}
    for fault in FAULTS:
        if fault.seen == NOTHING:
            continue
        name = fault.name.split(" (")[0]
        if not fault.new and fault.old in (BARRIER, SYNC, FENCE):
            name = "a fence left out" if fault.old == FENCE else "a barrier left out"
        said = rows.setdefault(name, {}).setdefault(fault.family, [])
        if words[fault.seen] not in said:
            said.append(words[fault.seen])
    lines = [
        ["fault", *families],
        *([name, *(", ".join(row.get(of, [])) for of in families)] for name, row in rows.items()),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines
    )
