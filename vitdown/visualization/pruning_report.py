"""What global pruning kept of each block: a table and a picture."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from vitdown.models.pruning import Sizes, ViTStructure

_COLUMNS = ('heads', 'QK a head', 'V a head', 'MLP')


def format_pruning_report(
    structure: ViTStructure, gates: Sequence[Tensor], cost: str, history: Sequence[dict]
) -> str:
    """Markdown table of the sizes kept in each block, beside those before pruning.

    Args:
        structure (ViTStructure): Of the model before pruning.
        gates (Sequence[Tensor]): Which units are kept, one bool tensor a layer.
        cost (str): What the cost is called.
        history (Sequence[dict]): See :class:`GlobalPruner`; empty where it is not known.
    """
    full, kept = structure.sizes, Sizes.from_counts(structure.counts(gates))
    rows = [
        '| block | ' + ' | '.join(_COLUMNS) + ' |',
        '|' + ' --- |' * (1 + len(_COLUMNS)),
    ]
    for i, (after, before) in enumerate(zip(kept.blocks, full.blocks)):
        cells = [f'{a} / {b}' for a, b in zip(after, before)]
        rows.append('| ' + ' | '.join([str(i), *cells]) + ' |')
    reached = f'; {cost} of the blocks: {100 * history[-1]["cost_ratio"]:.1f} %' if history else ''
    return '\n'.join(
        [
            f'Kept / before pruning, after {len(history)} events. Embedding: {kept.emb} / '
            f'{full.emb} channels{reached}.',
            '',
            *rows,
            '',
        ]
    )


def draw_pruning_report(structure: ViTStructure, gates: Sequence[Tensor], path: str | Path) -> None:
    """Picture of the same: share of the units kept, by block, one panel a structure."""
    full, kept = structure.sizes, Sizes.from_counts(structure.counts(gates))
    figure = Figure(figsize=(10, 5.5), layout='constrained')
    FigureCanvasAgg(figure)
    figure.suptitle(f'Embedding: {kept.emb} of {full.emb} channels kept')
    blocks = range(len(full.blocks))
    for column, axes in enumerate(figure.subplots(2, 2).flat):
        before = [block[column] for block in full.blocks]
        after = [block[column] for block in kept.blocks]
        axes.bar(blocks, before, color='lightgray', label='before')
        bars = axes.bar(blocks, after, color='tab:blue', label='kept')
        axes.bar_label(bars, fontsize=7)
        axes.margins(y=0.1)
        axes.set_title(_COLUMNS[column])
        axes.set_xlabel('block')
        axes.set_xticks(list(blocks))
    axes.legend(fontsize=8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
