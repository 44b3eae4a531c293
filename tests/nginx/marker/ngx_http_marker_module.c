/*
 * A dynamic module for the tests: `marker text;` (http, server, location) adds
 *
 *     X-Marker: text; module=1.26.3; pid=4711
 *
 * to every response: the version that the module was compiled for, and the worker that answered.
 * nginx refuses to load it into any other version, which is what a binary upgrade has to survive.
 */

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>


typedef struct {
    ngx_str_t  text;
} ngx_http_marker_conf_t;


static void *ngx_http_marker_create_conf(ngx_conf_t *cf);
static char *ngx_http_marker_merge_conf(ngx_conf_t *cf, void *parent, void *child);
static ngx_int_t ngx_http_marker_init(ngx_conf_t *cf);


static ngx_http_output_header_filter_pt  ngx_http_next_header_filter;


static ngx_command_t  ngx_http_marker_commands[] = {

    { ngx_string("marker"),
      NGX_HTTP_MAIN_CONF|NGX_HTTP_SRV_CONF|NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1,
      ngx_conf_set_str_slot,
      NGX_HTTP_LOC_CONF_OFFSET,
      offsetof(ngx_http_marker_conf_t, text),
      NULL },

      ngx_null_command
};


static ngx_http_module_t  ngx_http_marker_module_ctx = {
    NULL,                          /* preconfiguration */
    ngx_http_marker_init,          /* postconfiguration */
    NULL,                          /* create main configuration */
    NULL,                          /* init main configuration */
    NULL,                          /* create server configuration */
    NULL,                          /* merge server configuration */
    ngx_http_marker_create_conf,   /* create location configuration */
    ngx_http_marker_merge_conf     /* merge location configuration */
};


ngx_module_t  ngx_http_marker_module = {
    NGX_MODULE_V1,
    &ngx_http_marker_module_ctx,   /* module context */
    ngx_http_marker_commands,      /* module directives */
    NGX_HTTP_MODULE,               /* module type */
    NULL,                          /* init master */
    NULL,                          /* init module */
    NULL,                          /* init process */
    NULL,                          /* init thread */
    NULL,                          /* exit thread */
    NULL,                          /* exit process */
    NULL,                          /* exit master */
    NGX_MODULE_V1_PADDING
};


static ngx_int_t
ngx_http_marker_header_filter(ngx_http_request_t *r)
{
    u_char                  *value;
    size_t                   size;
    ngx_table_elt_t         *header;
    ngx_http_marker_conf_t  *conf;

    conf = ngx_http_get_module_loc_conf(r, ngx_http_marker_module);

    if (conf->text.len == 0 || r != r->main) {
        return ngx_http_next_header_filter(r);
    }

    size = conf->text.len + sizeof("; module=" NGINX_VERSION "; pid=") + NGX_INT64_LEN;
    value = ngx_pnalloc(r->pool, size);
    header = ngx_list_push(&r->headers_out.headers);

    if (value == NULL || header == NULL) {
        return NGX_ERROR;
    }

    ngx_memzero(header, sizeof(ngx_table_elt_t));
    header->hash = 1;
    ngx_str_set(&header->key, "X-Marker");
    header->value.data = value;
    header->value.len = ngx_snprintf(value, size, "%V; module=" NGINX_VERSION "; pid=%P",
                                     &conf->text, ngx_pid) - value;

    return ngx_http_next_header_filter(r);
}


static void *
ngx_http_marker_create_conf(ngx_conf_t *cf)
{
    return ngx_pcalloc(cf->pool, sizeof(ngx_http_marker_conf_t));
}


static char *
ngx_http_marker_merge_conf(ngx_conf_t *cf, void *parent, void *child)
{
    ngx_http_marker_conf_t  *previous = parent;
    ngx_http_marker_conf_t  *conf = child;

    ngx_conf_merge_str_value(conf->text, previous->text, "");

    return NGX_CONF_OK;
}


static ngx_int_t
ngx_http_marker_init(ngx_conf_t *cf)
{
    ngx_http_next_header_filter = ngx_http_top_header_filter;
    ngx_http_top_header_filter = ngx_http_marker_header_filter;

    return NGX_OK;
}
