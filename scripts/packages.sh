# What the other scripts share; they source it.

# Installs what a build needs besides Rust, where it is missing.
install_build_tools() {
    local packages=()
    command -v cc >/dev/null || packages+=(gcc libc6-dev)
    command -v cmake >/dev/null || packages+=(cmake)
    command -v make >/dev/null || packages+=(make)
    command -v nasm >/dev/null || [[ $(uname -m) != x86_64 ]] || packages+=(nasm)
    ((${#packages[@]} == 0)) || install_packages "${packages[@]}"
}

# Installs Debian packages. Where it may not, says which ones are missing.
install_packages() {
    local as_root=()
    ((EUID == 0)) || as_root=(sudo)
    if ! command -v apt-get >/dev/null || ! command -v "${as_root[@]:-true}" >/dev/null; then
        echo "missing and to be installed by hand: $*" >&2
        return 0
    fi
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends "$@"
}
