#!/usr/bin/env bash
# Packs what a machine with CUDA 13, torch 2.11 and Python 3.12, but no network, lacks for SGLang 0.5.23 with coatcheck.
#   pack.sh OUT         OUT/bundle.00, ... (packages, in parts of PART_BYTES or 58 MB; 2 to 4 minutes) and OUT/coatcheck.tar.xz
#   pack.sh OUT code    OUT/coatcheck.tar.xz alone: this checkout's code, a second; and OUT/model.safetensors, the default model's weights
# unpack.sh puts them together over there. The packages are those of peers/sglang.txt; nothing of SGLang is changed here.
set -euo pipefail
out=$(realpath -m "${1:?OUT}"); what=${2:-all}
root=$(cd "$(dirname "$0")/../.." && pwd); work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; mkdir -p "$out"

code() {  # this checkout: the package, the default model without its weights, the benchmarks, the plugin's entry point
  local site=$work/code/site version commit
  version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/pyproject.toml" | head -1)
  commit=$(git -C "$root" describe --always --dirty=+ --abbrev=10 --exclude='*' 2>/dev/null || true)
  mkdir -p "$site"
  tar -C "$root/src" --exclude=__pycache__ -cf - coatcheck | tar -C "$site" -xf -
  tar -C "$root/default_model" --exclude=__pycache__ --exclude='*.safetensors' -cf - coatcheck_default_model | tar -C "$site" -xf -
  tar -C "$root" --exclude=__pycache__ -cf - benchmarks training | tar -C "$site" -xf -
  cp "$root/default_model/coatcheck_default_model/model.safetensors" "$out/"
  mkdir "$site/coatcheck-$version.dist-info"
  printf 'Metadata-Version: 2.1\nName: coatcheck\nVersion: %s\n' "$version" > "$site/coatcheck-$version.dist-info/METADATA"
  sed -n '/^\[project.entry-points."sglang.srt.plugins"\]/,/^$/p' "$root/pyproject.toml" \
    | sed 's/^\[.*/[sglang.srt.plugins]/; s/"//g' > "$site/coatcheck-$version.dist-info/entry_points.txt"
  printf '%s\n' "$commit" > "$site/COMMIT"
  tar -C "$work/code" -cf - site | xz -T0 -6 > "$out/coatcheck.tar.xz"
}

get() {
  python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    --abi cp312 --abi abi3 --abi none $(printf -- '--platform manylinux_2_%s_x86_64 ' 34 31 28 27 24 17 5) \
    --platform manylinux2014_x86_64 --platform manylinux1_x86_64 "$@"
}

packages() {
  local site=$work/site skip
  # There already, or not needed to serve a Qwen model: torch and what belongs to it, numpy; JIT compilers of other back ends; dictionaries.
  skip='torch|triton|torchvision|numpy|scipy|torchao|llvmlite|numba|ipython|jedi|networkx|sympy|mpmath|pycountry|airportsdata|hf-xet|setuptools'
  grep -vE "^($skip)==" "$root/peers/sglang.txt" > "$work/list"
  get -d "$work/wheels" -r "$work/list"
  get -d "$work/wheels" cuda-python cuda-bindings cuda-pathfinder nvidia-ml-py py-spy httptools pytest pluggy iniconfig pytest-timeout
  get -d "$work/kernel" sglang-kernel==0.4.10   # its Python; compiled for torch 2.14
  get -d "$work/kernel" sglang-kernel==0.4.5    # compiled for torch 2.11
  mkdir "$site"
  for wheel in "$work"/wheels/*.whl; do unzip -qo "$wheel" -d "$site"; done
  for data in "$site"/*.data; do
    for part in purelib platlib; do [ -d "$data/$part" ] && cp -r "$data/$part/." "$site/"; done
    [ -d "$data/scripts" ] && mkdir -p "$site/bin" && cp -r "$data/scripts/." "$site/bin/"
    rm -rf "$data"
  done
  rm -f "$site"/sglang/srt/rust_extensions/_server* "$site"/sglang/srt/rust_extensions/_bench*   # off by default
  # flash_ops alone has 1.1 GB.
  unzip -qo "$work"/kernel/sglang_kernel-0.4.10*.whl -x 'sgl_kernel/flash_ops*' 'sgl_kernel/infllm_ops*' 'sgl_kernel/flashmla_ops*' 'sgl_kernel/sm100/*' -d "$site"
  unzip -qo "$work"/kernel/sglang_kernel-0.4.5-*.whl 'sgl_kernel/sm90/*' -d "$site"
  find "$site" -name __pycache__ -prune -exec rm -rf {} +
  rm -f "$out"/bundle.*
  tar -C "$work" -cf - site | xz -T0 -6 | split -b "${PART_BYTES:-58000000}" -d - "$out/bundle."
}

case $what in
  all) packages; code ;;
  code) code ;;
  *) echo "pack.sh OUT [code]: what is $what?" >&2; exit 2 ;;
esac
ls -l "$out"
