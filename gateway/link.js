/* Tells the gateway which visitor this browser is. It reads what analytics scripts left here; it makes no id,
   sets no cookie and never throws. */
(() => {
  'use strict';
  const w = window, d = document, early = w.gatewayLink, nav = navigator;
  if (early && early.reference) return;
  const attempt = (f, otherwise) => { try { return f(); } catch (e) { return otherwise; } };
  const tag = d.currentScript || d.querySelector('script[data-gateway],script[src*="/link."]');
  const endpoint = attempt(() => {
    const base = tag.dataset.gateway;
    return new URL('link', base ? new URL(base.replace(/\/*$/, '/'), d.baseURI) : tag.src).href;
  });

  const UUID = /^[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}$/i, ID = /^[!-~]{1,256}$/;
  // Only what every gateway can print: one strange campaign name must not cost the link.
  const WORDS = /^[ -~\xa1-\xac\xae-\u0377\u0400-\u052f\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3]{1,100}$/;
  const text = (value, shape) => {
    const s = typeof value === 'string' || typeof value === 'number' ? `${value}`.trim() : '';
    return (shape || ID).test(s) ? s : undefined;
  };
  const local = (key) => attempt(() => w.localStorage.getItem(key));
  const tab = (key) => attempt(() => w.sessionStorage.getItem(key));
  const keep = (key, value) => attempt(() => w.sessionStorage.setItem(key, value));
  const cookie = (name) => attempt(() => {
    const raw = d.cookie.split('; ').find((c) => c.startsWith(`${name}=`)).slice(name.length + 1);
    return attempt(() => decodeURIComponent(raw), raw);
  });
  const query = (name) => new URLSearchParams(w.location.search).get(name);
  const parsed = (json) => attempt(() => JSON.parse(json)) || {};
  const young = (ms, minutes) => !!ms && Math.abs(Date.now() - ms) < minutes * 6e4;
  const copy = (names, read, shape, to) => {
    for (const name of names) { const s = attempt(() => text(read(name), shape)); if (s) to[name] = s; }
    return to;
  };

  const gpc = () => nav.globalPrivacyControl;
  const refuses = {
    datalyr: () => gpc() || cookie('__dl_opt_out') === 'true',
    databuddy: () => gpc() || nav.doNotTrack === '1'
      || [local('databuddy_opt_out'), local('databuddy_disabled')].includes('true'),
    ads: () => gpc() || parsed(local('layersync:consent')).granted === false,
  };
  const first = (shape, ...reads) => reads.map((read) => text(attempt(read), shape)).find(Boolean);
  const products = {  // the order in which reference() prefers them
    datalyr: () => {
      const it = parsed(local('dl_dl_session_data'));  // getSessionId() may begin a session: it is not called
      const bare = (key) => local(key).replace(/^"|"$/g, '');
      return [first(ID, () => w.datalyr.getVisitorId(), () => w.datalyr.getAnonymousId(),
        () => cookie('__dl_visitor_id'), () => bare('dl_dl_anonymous_id'), () => bare('__dl_dl_anonymous_id')),
      it.isActive !== false && young(it.lastActivity, 60) && it.id];
    },
    nexly: () => [local('trk_visitor_id'), young(local('trk_session_ts'), 30) && local('trk_session_id')],
    databuddy: () => {
      const now = attempt(() => w.databuddy.getTrackingIds()) || {};
      return [first(/^anon_[!-~]{36}$/, () => now.anonId, () => w.databuddy.anonymousId, () => local('did')),
        first(/^sess_[!-~]{36}$/, () => now.sessionId,
          () => young(tab('did_session_timestamp'), 30) && tab('did_session'))];
    },
    analyse: () => [text(local('analyse_anon_id'), UUID),
      young(local('analyse_session_ts'), 30) && text(local('analyse_session_id'), UUID)],
    ga4: () => {
      const streams = d.cookie.match(/(^|; )_ga_[^=]+=[^;]+/g) || [];  // of several, which is ours is unknown
      const session = /=GS\d\.[\d-]+\.(?:s(\d+)\$.*?\$t(\d+)|(\d+)\.\d+\.\d+\.(\d+))/;
      const [, s, t, s1, t1] = session.exec(streams[1] ? '' : streams[0]) || [];
      return [(/^GA\d\.[\d-]+\.(\d+\.\d+)$/.exec(cookie('_ga')) || [])[1], young((t || t1) * 1e3, 30) && (s || s1)];
    },
  };
  const page = { ids: {}, subjects: {} };

  const ids = () => {
    const found = {};
    for (const name of new Set([...Object.keys(products), ...Object.keys(page.ids)])) {
      if (refuses[name] && refuses[name]()) continue;
      const given = page.ids[name] || {}, read = attempt(() => products[name]()) || [];
      const visitor_id = text(given.visitor_id) || text(read[0]), session_id = text(given.session_id) || text(read[1]);
      if (visitor_id || session_id) found[name] = { visitor_id, session_id };
    }
    return found;
  };

  const CLICKS = 'gclid gbraid wbraid fbclid msclkid ttclid epik ScCid rdt_cid twclid li_fat_id'.split(' ');
  const COOKIES = '_fbc _fbp _ga _gcl_aw _ttp ttclid _epik _scid rdt_cid _twclid li_fat_id'.split(' ');
  const UTM = 'utm_source utm_medium utm_campaign utm_content utm_term'.split(' ');
  const clicks = () => {
    const ads = !refuses.ads(), began = parsed(tab('gateway_landing')), landing = (name) => query(name) || began[name];
    const kept = copy(UTM, landing, WORDS, copy(ads ? CLICKS : [], landing, ID, {}));
    // For the pages to come: by the checkout, the address has lost what the visit began with.
    if (Object.keys(kept)[0]) keep('gateway_landing', JSON.stringify(kept));
    const all = Object.assign(copy(ads ? COOKIES : [], cookie, ID, {}), kept);
    Object.keys(all).slice(20).forEach((name) => delete all[name]);  // the gateway takes 20
    return all;
  };

  // A page may link by itself only what nobody can guess; the user takes a token from your backend.
  const subjects = () => {
    const found = {};
    // What follows the `?` is the cart's key, no part of its token.
    copy(['shopify_cart'], () => cookie('cart').split('?')[0], /^[\w:.+/=-]{20,250}$/, found);
    copy(['stripe_checkout'], () => query('session_id'), /^cs_\w{20,}$/, found);
    copy(['woocommerce_order'], () => query('key'), /^wc_order_\w{8,}$/, found);
    copy(['paddle_transaction'], () => query('_ptxn'), /^txn_\w{20,}$/, found);
    const barred = page.token ? ['email', 'phone'] : ['email', 'phone', 'user'];
    const own = Object.keys(page.subjects).filter((name) => !barred.includes(name));
    return copy(own, (name) => page.subjects[name], ID, found);
  };

  const digest = (s) => {
    let a = 1, b = 2;
    for (let i = 0; i < s.length; i++) {
      a = Math.imul(a ^ s.charCodeAt(i), 0x5bd1e995);
      b = Math.imul(b, 31) + s.charCodeAt(i) | 0;
    }
    return `${(a >>> 0).toString(36)}.${(b >>> 0).toString(36)}`;
  };
  const flying = {}, refused = {};
  let sent = '';

  const send = () => attempt(() => {
    const link = { ids: ids(), click_ids: clicks(), subjects: subjects() }, some = (map) => Object.keys(map).length;
    // Without a subject there is nothing that a payment could be found by: such a page sends nothing.
    if (!endpoint || !(page.token || some(link.subjects)) || !(some(link.ids) || some(link.click_ids))) return false;
    // A new token for the same user is no news.
    const claims = attempt(() => atob(page.token.split('.')[1].replace(/-/g, '+').replace(/_/g, '/')));
    const mark = digest(JSON.stringify([endpoint, link, parsed(claims).sub || page.token]));
    if (`${tab('gateway_link') || ''} ${sent}`.split(' ').includes(mark)) return true;
    if (refused[mark]) return false;
    if (flying[mark]) return flying[mark];
    const body = JSON.stringify(Object.assign(link, { token: page.token }));
    if (!w.fetch) {  // whether a beacon arrived nobody knows: it is not remembered
      nav.sendBeacon(endpoint, new Blob([body], { type: 'text/plain' }));
      return false;
    }
    // A string goes as text/plain: no preflight, so that it is out before the page is gone.
    const request = { method: 'POST', body, keepalive: true, mode: 'cors', credentials: 'omit' };
    return (flying[mark] = w.fetch(endpoint, request)
      .then((answer) => {
        if (answer.ok) {
          sent = [...sent.split(' '), mark].slice(-8).join(' ');
          keep('gateway_link', [...(tab('gateway_link') || '').split(' '), mark].slice(-8).join(' '));
        } else if (answer.status < 500 && answer.status !== 429) refused[mark] = true;
        if (answer.status === 401) page.token = undefined;  // it has run out: the rest is linked without it
        return answer.ok;
      })
      .catch(() => false)
      .then((taken) => { delete flying[mark]; return taken; }));
  }, false);

  const link = (news) => attempt(() => {
    const it = news || {};
    if ('token' in it) page.token = text(it.token, /^[\w.-]{1,4096}$/);
    const named = (name) => /^[a-z]\w{0,60}$/.test(name);
    Object.keys(it.subjects || {}).filter(named).forEach((name) => { page.subjects[name] = it.subjects[name]; });
    Object.keys(it.ids || {}).filter(named).forEach((name) => {
      const given = it.ids[name];
      page.ids[name] = given && typeof given === 'object' ? given : { visitor_id: given };
    });
    return Promise.resolve(send());
  }) || Promise.resolve(false);

  // A value for Stripe's client_reference_id (at most 200 letters, digits, - and _): the visitor's own id, linked here.
  link.reference = (subject) => attempt(() => {
    const known = ids();
    for (const product of ['datalyr', 'nexly', 'databuddy', 'analyse']) {
      const id = (known[product] || {}).visitor_id;
      if (!/^[\w-]{20,190}$/.test(id)) continue;
      const value = product === 'datalyr' && id.startsWith('anon_') ? id : `vis_${id}`;
      page.subjects[subject || 'stripe_reference'] = value;
      send();
      return value;
    }
    return '';
  }, '');
  const carried = (pairs) => copy(Object.keys(pairs), (name) => pairs[name], ID, {});
  const of = (product) => (attempt(ids, {})[product] || {}).visitor_id;
  link.metadata = () => carried({
    gateway_reference: link.reference(), visitor_id: of('datalyr'), databuddy_anonymous_id: of('databuddy'),
  });
  link.stripe = (target) => attempt(() => {
    const url = new URL(target.href || target, d.baseURI), reference = link.reference();
    const name = 'client_reference_id';
    if (reference && !url.searchParams.has(name)) url.searchParams.set(name, reference);
    if (target.href) target.href = url.href;
    return url.href;
  }, target);
  link.shopify = () => Promise.resolve(attempt(() => {
    const reference = link.reference('shopify_reference');
    const attributes = carried({ _gateway_reference: reference, _datalyr_visitor_id: of('datalyr') });
    if (!Object.keys(attributes).length) return false;
    const root = attempt(() => w.Shopify.routes.root) || '/', headers = { 'Content-Type': 'application/json' };
    const request = { method: 'POST', headers, body: JSON.stringify({ attributes }), keepalive: true };
    return w.fetch(`${root}cart/update.js`, request)
      .then((answer) => { send(); return answer.ok; }, () => false);
  }, false));

  w.gatewayLink = link;
  attempt(() => early.q.forEach((call) => link(...call)));
  const again = () => { send(); };
  again();
  // What came later: a vendor's script, a cart, a route of a single-page app; at the latest when the page is left.
  attempt(() => w.addEventListener('load', again));
  attempt(() => w.addEventListener('popstate', again));
  attempt(() => d.addEventListener('visibilitychange', again));
  attempt(() => w.navigation.addEventListener('navigatesuccess', again));
})();
