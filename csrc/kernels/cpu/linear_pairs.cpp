#include "chunks.h"
#include "linear.h"

namespace fastmtl {
namespace {

constexpr int64_t kMostNumbers = 1 << 20;  // products of inputs that are held

// Inner products of the inputs of all samples of a block with those of the samples from the first of the block on, as
// operands of a tile: [sample, rows] for each tile of the block. Twice those of samples after the block, which stand
// for both orders.
template <class S>
class InputGram {
 public:
  // A block is as many samples as a wide and a narrow tile have columns, which is a whole number of tiles' rows.
  InputGram(const Forming<S>& forming, const LinearLayer<S>& layer)
      : forming_(forming),
        layer_(layer),
        block_(forming.columns / 2 * 3),
        count_(ceil_div(layer.batch, block_)),
        groups_(ceil_div(layer.batch, forming.rows)),
        first_(count_ + 1),
        left_(groups_ * forming.rows * layer.width),
        values_(numbers(forming, layer)) {
    for (int64_t n = 0; n < count_; ++n) first_[n + 1] = first_[n] + block_ * length(n);
  }

  static int64_t numbers(const Forming<S>& forming, const LinearLayer<S>& layer) {
    const int64_t block = forming.columns / 2 * 3, count = ceil_div(layer.batch, block);
    return block * (count * layer.batch - block * (count * (count - 1) / 2));
  }

  int64_t count() const { return count_; }
  int64_t begin(int64_t n) const { return n * block_; }
  int64_t length(int64_t n) const { return layer_.batch - begin(n); }  // samples from the first of block n on
  int64_t samples(int64_t n) const { return std::min(block_, length(n)); }
  int64_t height() const { return block_; }  // rows of a block's products, those beyond the last sample included

  // to[b, c] = sum_b' <input_b, input_b'> from[b', c] for the samples b of block n; `from` begins with the first of
  // them.
  void multiply(int64_t n, const S* from, S* to) const {
    const int64_t wide = forming_.columns;
    for (int64_t b = 0; b < length(n); b += kSummed) {
      const int64_t some = std::min(kSummed, length(n) - b);
      for (int64_t t = 0; t * forming_.rows < samples(n); ++t)
        forming_.wide(tile(n, t) + b * forming_.rows, from + b * wide, some, to + t * forming_.rows * wide, wide,
                      b > 0);
    }
  }

  void compute(const Executor& parallel) {
    const Samples<S>& inputs = layer_.inputs;
    parallel(groups_, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        const int64_t first = g * forming_.rows;
        forming_.pack_left(inputs.data + first * inputs.pitch, inputs.step, inputs.pitch, layer_.batch - first,
                           layer_.width, left_ + first * layer_.width);
      }
    });
    parallel(count_, [&](int64_t begin, int64_t end) {
      Buffer<S> right(block_ * layer_.width), products(groups_ * forming_.rows * block_);
      // The first blocks are the longest: every thread gets some of both ends.
      for (int64_t unit = begin; unit < end; ++unit)
        block(unit % 2 == 0 ? unit / 2 : count_ - 1 - unit / 2, right, products);
    });
  }

 private:
  S* tile(int64_t n, int64_t tile) const { return values_ + first_[n] + tile * forming_.rows * length(n); }

  void block(int64_t n, S* right, S* products) const {
    const Samples<S>& inputs = layer_.inputs;
    const int64_t wide = forming_.columns, rest = std::max<int64_t>(length(n) - wide, 0);
    S* const narrow = right + wide * layer_.width;
    const S* from = inputs.data + begin(n) * inputs.pitch;
    forming_.pack_wide(from, inputs.step, inputs.pitch, length(n), layer_.width, right);
    forming_.pack_narrow(rest > 0 ? from + wide * inputs.pitch : from, inputs.step, inputs.pitch, rest, layer_.width,
                         narrow);
    for (int64_t i = 0; i < layer_.width; i += kSummed) {
      const int64_t some = std::min(kSummed, layer_.width - i);
      for (int64_t b = 0; b < length(n); b += forming_.rows) {
        const S* left = left_ + (begin(n) + b) * layer_.width + i * forming_.rows;
        forming_.wide(left, right + i * wide, some, products + b * block_, block_, i > 0);
        forming_.narrow(left, narrow + i * (wide / 2), some, products + b * block_ + wide, block_, i > 0);
      }
    }
    const S one = layer_.bias ? 1 : 0;
    for (int64_t t = 0; t * forming_.rows < block_; ++t) {
      S* to = tile(n, t);
      for (int64_t b = 0; b < length(n); ++b, to += forming_.rows) {
        const S factor = b < block_ ? 1 : 2;
        for (int64_t r = 0; r < forming_.rows; ++r)
          to[r] = factor * (products[b * block_ + t * forming_.rows + r] + one);
      }
    }
  }

  const Forming<S>& forming_;
  const LinearLayer<S>& layer_;
  int64_t block_, count_, groups_;
  std::vector<int64_t> first_;
  Buffer<S> left_, values_;
};

// Whether the columns of the gradients that a thread works on stay in the cache of its core, and fill tiles. The
// products of the inputs, each used for a tile of every task, may come from further away.
template <class S>
bool fits(const Forming<S>& forming, const LinearLayer<S>& layer) {
  const int64_t tasks = layer.grads.size(), held = tasks * layer.batch * forming.columns;
  return held * static_cast<int64_t>(sizeof(S)) <= kCacheBytes &&
         InputGram<S>::numbers(forming, layer) <= kMostNumbers && layer.width > 0 &&
         layer.batch >= 2 * forming.columns && layer.outputs >= 2 * forming.columns;
}

}  // namespace

template <class S>
bool linear_by_pairs(const Isa& isa, const Executor& parallel, const LinearLayer<S>& layer, double* result) {
  const Forming<S>& forming = compute<S>(isa).forming;
  if (!fits(forming, layer)) return false;
  const std::vector<int64_t> present = present_tasks(layer.grads);
  const int64_t tasks = layer.grads.size(), count = present.size(), size = count * count;
  InputGram<S> gram(forming, layer);
  gram.compute(parallel);
  // Columns of the gradients, as many as a tile has.
  const int64_t panels = ceil_div(layer.outputs, forming.columns), units = std::min(panels, kMaxUnits);
  std::vector<double> partial(units * size);
  parallel(units, [&](int64_t begin, int64_t end) {
    const int64_t wide = forming.columns, own = layer.batch * wide;
    const int64_t pitch = padded<S>(gram.height() * wide);
    Buffer<S> columns(count * own), products(count * pitch);
    Buffer<double> lanes(size * isa.lanes);
    std::vector<const S*> left(count), right(count);
    for (int64_t k = 0; k < count; ++k) left[k] = products + k * pitch;
    for (int64_t unit = begin; unit < end; ++unit) {
      std::fill_n(static_cast<double*>(lanes), size * isa.lanes, 0.0);
      for (int64_t panel = panels * unit / units; panel < panels * (unit + 1) / units; ++panel) {
        for (int64_t k = 0; k < count; ++k) {
          const Samples<S>& grad = layer.grads[present[k]];
          forming.pack_wide(grad.data + panel * wide * grad.step, grad.pitch, grad.step, layer.outputs - panel * wide,
                            layer.batch, columns + k * own);
        }
        for (int64_t n = 0; n < gram.count(); ++n) {
          for (int64_t k = 0; k < count; ++k) {
            right[k] = columns + k * own + gram.begin(n) * wide;
            gram.multiply(n, right[k], products + k * pitch);
          }
          compute<S>(isa).cross(left.data(), count, right.data(), count, gram.samples(n) * wide, lanes);
        }
      }
      for (int64_t at = 0; at < size; ++at) partial[unit * size + at] = folded(lanes + at * isa.lanes, isa.lanes);
    }
  });
  // Pairs in one order: the other gives the transposed matrix.
  std::vector<double> sum(size);
  for (int64_t unit = 0; unit < units; ++unit) {
    for (int64_t at = 0; at < size; ++at) sum[at] += partial[unit * size + at];
  }
  std::fill_n(result, tasks * tasks, 0.0);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j < count; ++j)
      result[present[i] * tasks + present[j]] = (sum[i * count + j] + sum[j * count + i]) / 2;
  }
  return true;
}

template bool linear_by_pairs<float>(const Isa&, const Executor&, const LinearLayer<float>&, double*);
template bool linear_by_pairs<double>(const Isa&, const Executor&, const LinearLayer<double>&, double*);

}  // namespace fastmtl
