#include "chunks.h"
#include "linear.h"

namespace fastmtl {
namespace {

constexpr int64_t kFewestTiles = 4;  // along either side: what is padded is little beside them

// Whether what a thread works on stays in the cache of its core, and fills tiles.
template <class S>
bool fits(const Forming<S>& forming, const LinearLayer<S>& layer) {
  const int64_t tasks = layer.grads.size(), held = layer.batch * (layer.width + layer.bias + tasks * forming.rows);
  return layer.batch > 0 && held * static_cast<int64_t>(sizeof(S)) <= kCacheBytes &&
         layer.width >= kFewestTiles / 2 * forming.columns && layer.outputs >= kFewestTiles * forming.rows;
}

// The inputs in panels of as many columns as a tile has, the last one half as wide where that is enough.
template <class S>
class Panels {
 public:
  Panels(const Forming<S>& forming, const LinearLayer<S>& layer)
      : forming_(forming),
        layer_(layer),
        columns_(ceil_div(layer.width + layer.bias, forming.columns / 2) * (forming.columns / 2)),
        packed_(layer.batch * columns_) {}

  int64_t columns() const { return columns_; }
  int64_t count() const { return ceil_div(columns_, forming_.columns); }
  int64_t width(int64_t panel) const { return std::min(forming_.columns, columns_ - panel * forming_.columns); }
  const S* at(int64_t panel, int64_t sample) const { return place(panel) + sample * width(panel); }

  void pack(int64_t panel) {
    const int64_t first = panel * forming_.columns, wide = width(panel), given = layer_.width - first;
    const auto pack = wide == forming_.columns ? forming_.pack_wide : forming_.pack_narrow;
    const Samples<S>& inputs = layer_.inputs;
    pack(inputs.data + first * inputs.step, inputs.pitch, inputs.step, given, layer_.batch, place(panel));
    if (!layer_.bias || given >= wide) return;
    for (int64_t b = 0; b < layer_.batch; ++b) place(panel)[b * wide + given] = 1;
  }

 private:
  S* place(int64_t panel) const { return packed_ + panel * forming_.columns * layer_.batch; }

  const Forming<S>& forming_;
  const LinearLayer<S>& layer_;
  int64_t columns_;
  Buffer<S> packed_;
};

}  // namespace

template <class S>
bool linear_by_forming(const Isa& isa, const Executor& parallel, const LinearLayer<S>& layer, double* result) {
  const Forming<S>& forming = compute<S>(isa).forming;
  if (!fits(forming, layer)) return false;
  const std::vector<int64_t> present = present_tasks(layer.grads);
  const int64_t tasks = layer.grads.size(), count = present.size(), size = count * count;
  std::fill_n(result, tasks * tasks, 0.0);
  Panels<S> panels(forming, layer);
  parallel(panels.count(), [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) panels.pack(panel);
  });
  const int64_t tiles = ceil_div(layer.outputs, forming.rows), units = std::min(tiles, kMaxUnits);
  const int64_t numbers = forming.rows * panels.columns(), pitch = padded<S>(numbers);
  std::vector<double> partial(units * size);
  parallel(units, [&](int64_t begin, int64_t end) {
    const int64_t own = layer.batch * forming.rows;
    Buffer<S> outputs(count * own), formed(count * pitch);
    Buffer<double> lanes(size * isa.lanes);
    std::vector<const S*> rows(count);
    for (int64_t k = 0; k < count; ++k) rows[k] = formed + k * pitch;
    for (int64_t unit = begin; unit < end; ++unit) {
      std::fill_n(static_cast<double*>(lanes), size * isa.lanes, 0.0);
      for (int64_t tile = tiles * unit / units; tile < tiles * (unit + 1) / units; ++tile) {
        const int64_t first = tile * forming.rows;
        for (int64_t k = 0; k < count; ++k) {
          const Samples<S>& grad = layer.grads[present[k]];
          forming.pack_left(grad.data + first * grad.step, grad.pitch, grad.step, layer.outputs - first, layer.batch,
                            outputs + k * own);
        }
        for (int64_t panel = 0; panel < panels.count(); ++panel) {
          const auto form = panels.width(panel) == forming.columns ? forming.wide : forming.narrow;
          for (int64_t b = 0; b < layer.batch; b += kSummed) {
            for (int64_t k = 0; k < count; ++k) {
              form(outputs + k * own + b * forming.rows, panels.at(panel, b), std::min(kSummed, layer.batch - b),
                   formed + k * pitch + panel * forming.columns, panels.columns(), b > 0);
            }
          }
        }
        compute<S>(isa).gram(rows.data(), count, numbers, lanes, {});
      }
      fold(lanes, count, isa.lanes, &partial[unit * size]);
    }
  });
  add_up(partial.data(), units, present, tasks, 1.0, result);
  return true;
}

template bool linear_by_forming<float>(const Isa&, const Executor&, const LinearLayer<float>&, double*);
template bool linear_by_forming<double>(const Isa&, const Executor&, const LinearLayer<double>&, double*);

}  // namespace fastmtl
