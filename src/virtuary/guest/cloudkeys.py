"""The keys that cloud-init knows at the top of a #cloud-config. It passes over all others without a
word that anybody hears: a key that is misspelt looks as if it had been carried out.

Source: the properties of cloud-init's schema-cloud-config-v1.json, those that older releases knew,
and what its own modules read besides.
"""

from __future__ import annotations

from virtuary.guest.userdata import mappings

_WORDS = """
    add_apt_repo_match allow_public_ssh_keys allow_userdata ansible apk_repos apt
    apt_custom_sources_list apt_ftp_proxy apt_http_proxy apt_https_proxy apt_mirror
    apt_mirror_search apt_mirror_search_dns apt_pipelining apt_preserve_sources_list apt_proxy
    apt_reboot_if_required apt_sources apt_update apt_upgrade authkey_hash autoinstall bootcmd
    byobu_by_default ca-certs ca_certs chef chpasswd cloud_config_modules cloud_final_modules
    cloud_init_modules create_hostname_file datasource datasource_list debconf_selections
    def_log_file device_aliases disable_ec2_metadata disable_root disable_root_opts disk_setup
    drivers fan final_message fqdn fs_setup groups growpart grub-dpkg grub_dpkg hostname keyboard
    landscape launch-index locale locale_configfile log_cfgs logcfg lxd manage_etc_hosts
    manage_resolv_conf mcollective merge_how merge_type migrate mount_default_fields mounts network
    no_ssh_fingerprints ntp output package_reboot_if_required package_update package_upgrade
    packages password phone_home power_state prefer_fqdn_over_hostname preserve_hostname puppet
    random_seed reporting resize_rootfs resize_rootfs_tmp resolv_conf rh_subscription rpi rsyslog
    runcmd salt_minion snap snappy spacewalk ssh ssh_authorized_keys ssh_deletekeys
    ssh_fp_console_blacklist ssh_genkeytypes ssh_import_id ssh_key_console_blacklist ssh_keys
    ssh_publish_hostkeys ssh_pwauth ssh_quiet_keygen ssh_svcname swap syslog_fix_perms system_info
    timezone ubuntu_advantage ubuntu_drivers ubuntu_pro unverified_modules updates user users
    vendor_data vendor_data2 version wireguard write_files yum_repo_dir yum_repos zypper
"""
KNOWN = frozenset(_WORDS.split())
MOST = 10
"""Keys that are told."""


def passed_over(text: str) -> list[str]:
    """What cloud-init does nothing with of user data that `check_user_data` accepts, in words, each
    with the key that was perhaps meant. Pure.
    """
    import difflib

    found = []
    for key in dict.fromkeys(key for mapping in mappings(text) for key in mapping):
        if key in KNOWN:
            continue
        near = difflib.get_close_matches(str(key).lower()[:80], KNOWN, 1)
        meant = f": was {near[0]} meant?" if near else ""
        found.append(f"cloud-init knows no key {str(key)[:80]!r}, and passes over it{meant}")
    return found[:MOST]
