#include "chunks.h"
#include "linear.h"

namespace fastmtl {
namespace {

constexpr int64_t kFewestTiles = 4;  // along either side: what is padded is little beside them

// Whether what a thread works on stays in the cache of its core, and fills tiles.
template <class S>
bool fits(const Forming<S>& forming, const LinearLayer<S>& layer) {
  const int64_t tasks = layer.grads.size(), held = layer.batch * (layer.width + tasks * forming.rows);
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
        columns_(ceil_div(layer.width, forming.columns / 2) * (forming.columns / 2)),
        packed_(layer.batch * columns_) {}

  int64_t columns() const { return columns_; }
  int64_t count() const { return ceil_div(columns_, forming_.columns); }
  int64_t width(int64_t panel) const { return std::min(forming_.columns, columns_ - panel * forming_.columns); }
  const S* at(int64_t panel, int64_t sample) const { return place(panel) + sample * width(panel); }

  void pack(int64_t panel) {
    const int64_t first = panel * forming_.columns;
    const auto pack = width(panel) == forming_.columns ? forming_.pack_wide : forming_.pack_narrow;
    const Samples<S>& inputs = layer_.inputs;
    pack(inputs.data + first * inputs.step, inputs.pitch, inputs.step, layer_.width - first, layer_.batch,
         place(panel));
  }

 private:
  S* place(int64_t panel) const { return packed_ + panel * forming_.columns * layer_.batch; }

  const Forming<S>& forming_;
  const LinearLayer<S>& layer_;
  int64_t columns_;
  Buffer<S> packed_;
};

// The gradient of the bias, from a tile's packed outputs.
template <class S>
void sum_samples(const Forming<S>& forming, const S* packed, int64_t batch, S* to) {
  constexpr int64_t kTogether = 8 * kSummed;  // which a vector adds up in several places
  std::vector<S> part(forming.rows);
  for (int64_t b = 0; b < batch; b += kTogether) {
    forming.sum_left(packed + b * forming.rows, std::min(kTogether, batch - b), part.data());
    for (int64_t r = 0; r < forming.rows; ++r) to[r] = b == 0 ? part[r] : to[r] + part[r];
  }
}

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
  const int64_t weights = forming.rows * panels.columns(), numbers = weights + (layer.bias ? forming.rows : 0);
  const int64_t pitch = padded<S>(numbers);
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
          if (layer.bias) sum_samples(forming, outputs + k * own, layer.batch, formed + k * pitch + weights);
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
