# Over there: `. unpack.sh PARTS SITE`, with bundle.* and coatcheck.tar.xz in PARTS; leaves the environment set for SGLang.
# What is unpacked already is not again, the code only if it is another. SITE has to end in /site.
_parts=$1 _site=$2
mkdir -p "$(dirname "$_site")"
if [ ! -e "$_site/.complete" ]; then
  cat "$_parts"/bundle.* | xz -dc -T0 | tar -x -C "$(dirname "$_site")" || return 1
  chmod +x "$_site"/bin/* 2>/dev/null
  # SGLang imports IPython for notebooks only, and asks the dual GEMM of CUTLASS's Python for every CUDA card.
  mkdir -p "$_site/IPython" && : > "$_site/IPython/__init__.py"
  printf 'def HTML(*a, **k): pass\ndef display(*a, **k): pass\n' > "$_site/IPython/display.py"
  sed -i '0,/if not is_cuda():/s/if not is_cuda():/if True:/' "$_site/sglang/srt/layers/dual_gemm.py"
  : > "$_site/.complete"
fi
if ! cmp -s "$_parts/coatcheck.tar.xz" "$_site/.code"; then  # not under servers that run, if nothing changed
  rm -rf "$_site/coatcheck" "$_site/coatcheck_default_model" "$_site/benchmarks" "$_site/training" "$_site"/coatcheck-*.dist-info
  xz -dc "$_parts/coatcheck.tar.xz" | tar -x -C "$(dirname "$_site")" || return 1
  cp "$_parts/coatcheck.tar.xz" "$_site/.code"
fi
export PYTHONPATH=$_site PATH=$PATH:$_site/bin HF_HUB_OFFLINE=1
export SGLANG_SKIP_SGL_KERNEL_VERSION_CHECK=1               # 0.4.5's operators under 0.4.10's Python
export SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND=python        # the Rust core is compiled for another torch: UnknownKind(30)
