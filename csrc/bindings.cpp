// The only file that knows Python: checks arrays, releases the GIL, calls the core.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "average_precision.hpp"
#include "suppression.hpp"

namespace py = pybind11;

void register_scans(py::module_& m);

namespace {

// no implicit casts: a wrong dtype is an error, not a silent copy
template <typename T>
using Array = py::array_t<T, py::array::c_style>;

template <typename T>
const T* column(const Array<T>& array, py::ssize_t size, const char* name) {
  if (array.ndim() != 1 || array.shape(0) != size)
    throw std::invalid_argument(std::string(name) + " must be [" + std::to_string(size) + "]");
  return array.data();
}

void check_range(const std::int64_t* values, py::ssize_t size, py::ssize_t limit, const char* name) {
  for (py::ssize_t i = 0; i < size; ++i)
    if (values[i] < 0 || values[i] >= limit)
      throw std::invalid_argument(std::string(name) + "[" + std::to_string(i) + "] must be in [0, " +
                                  std::to_string(limit) + "), got " + std::to_string(values[i]));
}

py::tuple average_precision(const Array<std::int64_t>& truth_video, const Array<std::int64_t>& truth_class,
                            const Array<double>& truth_start, const Array<double>& truth_end,
                            const Array<std::int64_t>& video, const Array<std::int64_t>& class_index,
                            const Array<double>& score, const Array<double>& start, const Array<double>& end,
                            const py::object& order, const py::object& tie_offsets, const py::object& tie_ranks,
                            py::ssize_t n_videos, py::ssize_t n_classes,
                            const Array<double>& tious, bool want_matches, unsigned n_threads) {
  const auto n_truth = truth_video.size(), n = video.size(), n_tious = tious.size();
  if (tious.ndim() != 1) throw std::invalid_argument("tious must be [K]");
  const ahlm::GroundTruth truth{static_cast<std::size_t>(n_truth), column(truth_video, n_truth, "truth_video"),
                                column(truth_class, n_truth, "truth_class"), column(truth_start, n_truth, "truth_start"),
                                column(truth_end, n_truth, "truth_end")};
  Array<std::int64_t> order_array, offsets_array, ranks_array;
  if (!order.is_none()) order_array = py::cast<Array<std::int64_t>>(order);
  if (!tie_offsets.is_none()) {
    offsets_array = py::cast<Array<std::int64_t>>(tie_offsets);
    ranks_array = py::cast<Array<std::int64_t>>(tie_ranks);
  }
  const ahlm::Predictions predictions{static_cast<std::size_t>(n),
                                      column(video, n, "video"),
                                      column(class_index, n, "class_index"),
                                      column(score, n, "score"),
                                      column(start, n, "start"),
                                      column(end, n, "end"),
                                      order.is_none() ? nullptr : column(order_array, n, "order"),
                                      tie_offsets.is_none() ? nullptr : column(offsets_array, n, "tie_offsets"),
                                      tie_offsets.is_none() ? nullptr : ranks_array.data()};
  check_range(truth.video, n_truth, n_videos, "truth_video");
  check_range(truth.class_index, n_truth, n_classes, "truth_class");
  check_range(predictions.video, n, n_videos, "video");
  check_range(predictions.class_index, n, n_classes, "class_index");
  if (predictions.order) check_range(predictions.order, n, n, "order");
  Array<double> ap({n_tious, n_classes});
  Array<std::int64_t> matched({want_matches ? n_tious : 0, n});
  double* const ap_data = ap.mutable_data();
  std::int64_t* const matched_data = want_matches ? matched.mutable_data() : nullptr;
  {
    const py::gil_scoped_release release;
    ahlm::average_precision(truth, predictions, static_cast<std::size_t>(n_videos),
                            static_cast<std::size_t>(n_classes), tious.data(), static_cast<std::size_t>(n_tious),
                            n_threads, ap_data, matched_data);
  }
  return py::make_tuple(ap, matched);
}

py::tuple suppress(const Array<std::int64_t>& class_index, const Array<double>& score, const Array<double>& start,
                   const Array<double>& end, double tiou, double sigma, double min_score, double extra) {
  const auto n = class_index.size();
  const ahlm::Detections detections{static_cast<std::size_t>(n), column(class_index, n, "class_index"),
                                    column(score, n, "score"), column(start, n, "start"), column(end, n, "end")};
  std::vector<double> scores(detections.score, detections.score + n);
  std::vector<std::int64_t> kept;
  {
    const py::gil_scoped_release release;
    kept = ahlm::suppress(detections, tiou, sigma, min_score, extra, scores.data());
  }
  Array<std::int64_t> index(static_cast<py::ssize_t>(kept.size()));
  Array<double> kept_scores(static_cast<py::ssize_t>(kept.size()));
  for (std::size_t i = 0; i < kept.size(); ++i) {
    index.mutable_data()[i] = kept[i];
    kept_scores.mutable_data()[i] = scores[static_cast<std::size_t>(kept[i])];
  }
  return py::make_tuple(index, kept_scores);
}

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "Compiled parts of ahlm; ahlm.evaluation and ahlm.localization are their public faces.";
  m.def("average_precision", &average_precision, py::arg("truth_video").noconvert(), py::arg("truth_class").noconvert(),
        py::arg("truth_start").noconvert(), py::arg("truth_end").noconvert(), py::arg("video").noconvert(),
        py::arg("class_index").noconvert(), py::arg("score").noconvert(), py::arg("start").noconvert(),
        py::arg("end").noconvert(), py::arg("order").none(true), py::arg("tie_offsets").none(true),
        py::arg("tie_ranks").none(true), py::arg("n_videos"), py::arg("n_classes"),
        py::arg("tious").noconvert(), py::arg("want_matches"), py::arg("n_threads"));
  m.def("suppress", &suppress, py::arg("class_index").noconvert(), py::arg("score").noconvert(),
        py::arg("start").noconvert(), py::arg("end").noconvert(), py::arg("tiou"), py::arg("sigma"),
        py::arg("min_score"), py::arg("extra"));
#if defined(AHLM_HAS_SCANS)
  register_scans(m);
#endif
}
